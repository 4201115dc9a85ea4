"""Every key of every config, with its meaning. Experiments import this and set only what differs.

Any key can be set on the command line, ``--config.likelihood.n_images=20``; tuples are written with
commas, ``--config.sampling.sampler=heun,ode``. The command line is checked against this list, so a
mistyped key is refused with the nearest known one.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    """The defaults: the digits experiment at its five-minute size.

    Raises:
        ValueError: any variant; there is only one list of defaults.
    """
    if variant:
        raise ValueError(f"configs/default.py has no variants, got {variant!r}; leave it out.")
    config = ConfigDict()
    # What the command does: "merge" measures two experts and their merges; "sample" draws many samples of one
    # model into files; "train_expert" and "train_classifier" make the checkpoints that come with the package;
    # "moe" puts two frozen experts under a trained gate, "moe_ablations" compares mixtures of K experts.
    config.task = "merge"
    # The report's title; empty for one made of the data set's name.
    config.title = ""
    # Every random number follows from this one.
    config.seed = 0
    # Matrix products: "highest" is full float32 (likelihoods need it), "high" and "default" are faster
    # on accelerators.
    config.precision = "highest"

    config.data = data()
    config.experts = experts()
    config.merge = merge()
    config.likelihood = likelihood()
    config.bound = bound()
    config.sampling = sampling()
    config.shards = shards()
    config.metric = metric()
    config.reconstruction = reconstruction()
    config.cost = cost()
    config.report = report()
    config.expert = expert()
    config.training = training()
    config.classifier = classifier()
    config.moe = moe()
    return config


def data() -> ConfigDict:
    """Which images, and which of their splits plays which part."""
    return ConfigDict(
        {
            # The data set; "digits" is scikit-learn's handwritten digits, 8x8, 17 grey levels.
            "name": "digits",
            # Experts and classifier learn from these images; grids of the solver are chosen on them.
            "train_split": "train",
            # Thresholds are proposed from these, never from the test images.
            "validation_split": "validation",
            # Likelihoods and distances are measured on these.
            "test_split": "test",
            # Validation images that are used, at most; 0 takes all.
            "n_validation": 0,
            # Where prepared data sets are; empty for the environment's JAXMERGE_DATA, else ~/jaxmerge_data.
            "data_dir": "",
            # Evaluate experts on another data set than they were trained on.
            "allow_other": False,
        }
    )


def experts() -> ConfigDict:
    """The two experts that are merged."""
    return ConfigDict(
        {
            # Answers at low noise (below the threshold): a shipped expert's name or a checkpoint's path.
            "low": "digits_vdm",
            # Answers at high noise (above the threshold).
            "high": "digits_edm",
            # What `python -m checkpoints_convert` makes them from where they are missing: the short name of a
            # public checkpoint, a URL or a file; empty where they come from elsewhere.
            "low_source": "",
            "high_source": "",
            # Make a missing expert from its source at the start of the run; otherwise the run says how to.
            "fetch": False,
            # Ask an EDM network in its own pixel scale; False reproduces the paper's listing.
            "align_pixel_scale": True,
        }
    )


def merge() -> ConfigDict:
    """Where the merge switches from one expert to the other."""
    return ConfigDict(
        {
            # Thresholds as positions in the merged noise range, for example 0.2,0.3. "auto" takes the
            # lowest and the highest that the experts allow and 0.1, 0.2, ... between them. The
            # proposed thresholds are always added.
            "etas": ("auto",),
            # Propose thresholds from the validation images.
            "propose": True,
            # Proposals are taken from a grid of thresholds this far apart.
            "candidate_step": 0.02,
        }
    )


def likelihood() -> ConfigDict:
    """The exact likelihood by the probability-flow ODE."""
    return ConfigDict(
        {
            # Test images that are scored; 0 leaves the likelihood out.
            "n_images": 180,
            # From grey levels to real numbers: "truncated_normal", "uniform" or "variational".
            "dequantization": "truncated_normal",
            # Dequantisation draws per image; more than one gives the importance-weighted estimate.
            "draws": 1,
            # Divergence: "hutchinson" (random probes) or "exact" (a column per pixel).
            "trace": "hutchinson",
            # Rademacher probes per image; the variance of the estimate falls as 1/probes.
            "probes": 1,
            # Step control: "fixed" (one grid for all images, chosen on training images), "multistep"
            # (the same with steps that remember earlier ones: half the calls for a single model, less
            # gain in a sweep, whose every threshold starts them anew),
            # "per_image" (adaptive, each image its own steps) or "batch" (adaptive, one step size
            # for the whole batch: the result depends on the neighbours).
            "control": "fixed",
            # Controls "fixed" and "multistep": steps per unit of gamma; 0 chooses them on training images.
            "steps_per_gamma": 0.0,
            # Controls "fixed" and "multistep": the mean error that the grid may make, in bits per
            # dimension, and the estimated error from which a single image is solved again on a finer grid.
            "tolerance": 0.005,
            "image_tolerance": 0.05,
            # Controls "per_image" and "batch": relative and absolute tolerance of the solver.
            "rtol": 1e-5,
            "atol": 1e-5,
            # Test images on which pixel-scale alignment is compared with the paper's listing; 0 leaves
            # the comparison out.
            "alignment_images": 0,
            # Images per device and call; changes memory and speed, not the result.
            "batch_size": 90,
        }
    )


def bound() -> ConfigDict:
    """The variational lower bound, and the error curves of both experts that it is made of."""
    return ConfigDict(
        {
            # Test images whose bound is reported, 0 for none; the thresholds are proposed from training and
            # validation images.
            "n_images": 180,
            # Noise levels per image and interval between neighbouring candidate thresholds (stratified).
            "n_times": 1,
            # Independent repetitions, from which the Monte Carlo error comes.
            "repeats": 4,
            # Test images are also cut into this many batches, whose means' standard deviation stands beside the
            # bound (the paper's Table 5: 10 batches of 512); 0 for none.
            "groups": 0,
            # Images per device and call.
            "batch_size": 180,
        }
    )


def sampling() -> ConfigDict:
    """Samples, all models from the same noise."""
    return ConfigDict(
        {
            # Images per seed, and seeds, for the two experts and the proposed thresholds; the error is
            # over seeds.
            "n_samples": 1000,
            "seeds": 3,
            # Images per seed, and seeds, for every other threshold; 0 images leave those out.
            "n_samples_other": 1000,
            "seeds_other": 1,
            # Samplers: "heun" (EDM's noise grid), "ode" (fixed grid), "ancestral". The first one
            # is drawn in the trade-off figure.
            "sampler": ("heun", "ancestral"),
            # Steps of Heun's grid; two network calls each.
            "heun_steps": 18,
            # Steps per unit of gamma of the sampler "ode"; three network calls each.
            "ode_steps_per_gamma": 3.0,
            # Steps of the ancestral sampler; images per seed, and seeds, for the experts and the cautious
            # proposal; images per seed for every other threshold. 0 images leave them out.
            "ancestral_steps": 256,
            "ancestral_samples": 500,
            "ancestral_seeds": 1,
            "ancestral_samples_other": 0,
            # From the last state to grey levels: "argmax" of the decoder or a "sample" from it.
            "decoder": "argmax",
            # Images per device and call.
            "batch_size": 250,
        }
    )


def shards() -> ConfigDict:
    """What task "sample" draws, with the first of ``sampling.sampler``, and how it is cut into files."""
    return ConfigDict(
        {
            # "merged", or one of the experts, "low" or "high".
            "model": "merged",
            # The merge's threshold, a position in the merged noise range.
            "eta": 0.3,
            # Images altogether and per file; a stopped run continues after the last whole file.
            "count": 50_000,
            "size": 1000,
            # Which of the numbered sets of noise; another seed gives other images.
            "seed": 0,
            # Copies for other people's tools: one npz with arr_0, or a PNG per image.
            "npz": False,
            "png": False,
        }
    )


def metric() -> ConfigDict:
    """How samples are judged."""
    return ConfigDict(
        {
            # "classifier" (a Frechet distance of a small classifier's features), "inception" (FID, KID and
            # Inception score) or "none" (samples are drawn and shown, not judged).
            "kind": "classifier",
            # The classifier whose penultimate features give the Frechet distance: a shipped name
            # ("digits_classifier" or "photos_classifier") or a checkpoint's path.
            "classifier": "digits_classifier",
            # Kind "inception": the converted Inception network
            # (python -m checkpoints_convert fid-inception checkpoints/inception).
            "inception": "checkpoints/inception",
            # Kind "inception": reference statistics, an npz file with mu and sigma, or a folder where those of the
            # training images are measured once and kept; empty for the folder "references".
            "reference": "",
            # Kind "inception": take fewer than 2048 samples, where FID is much too large, or fewer than three seeds.
            "allow_few": False,
        }
    )


def reconstruction() -> ConfigDict:
    """Merges of two experts: test images after noise and one denoising call, compared with the originals."""
    return ConfigDict(
        {
            # Test images; 0 leaves the reconstructions out.
            "n_images": 0,
            # Noise levels gamma; both experts must know them.
            "gammas": (-4.0, 0.0, 4.0),
            # Checkpoint of LPIPS (python -m checkpoints_convert alex.pth DEST --backbone FILE); empty for PSNR and
            # SSIM alone. Mixtures (tasks "moe", "moe_ablations") use it too.
            "lpips": "",
            # Images per device and call.
            "batch_size": 50,
        }
    )


def cost() -> ConfigDict:
    """Merges of two experts: time, network calls, memory and parameters of the first of ``sampling.sampler``."""
    return ConfigDict(
        {
            # Timed calls after one that compiles; 0 leaves the measurement out.
            "repeats": 0,
            # Images per call, all on one device.
            "batch_size": 64,
        }
    )


def report() -> ConfigDict:
    """The run's page."""
    return ConfigDict(
        {
            # Columns of the sample figure: images from the same noise in every row.
            "columns": 12,
            # Merges in the sample figure, spread over the thresholds; 0 shows all. Proposed thresholds are added.
            "merges": 5,
            # The paper's tables (of 1, 2, 4, 5 and 6) whose numbers stand beside the measured ones, () for none; their
            # data set; and what differs from the paper's experiment, in words.
            "published": (),
            "published_data": "cifar10",
            "published_note": "",
            # Draw the method's diagram (the paper's Figure 1) for the measured merge.
            "diagram": False,
        }
    )


def expert() -> ConfigDict:
    """The expert that task "train_expert" builds."""
    return ConfigDict(
        {
            # "vdm" (predicts noise, VDM's objective) or "edm" (preconditioned denoiser, EDM's objective).
            "kind": "vdm",
            # Channels of the network's base width.
            "width": 32,
            # VDM: down blocks; there is one more up block.
            "depth": 2,
            # VDM: powers k of the Fourier features of z; at 17 grey levels 2 and 3 carry information.
            "fourier": (2, 3),
            # VDM: attention in the middle, at the images' full resolution, where it is dear.
            "mid_attention": True,
            # EDM: widths per resolution, in units of `width`, and residual blocks per resolution.
            "channel_mult": (1, 2),
            "num_blocks": 1,
            # EDM: resolutions with self-attention.
            "attn_resolutions": (4,),
            # Dropout rate inside the blocks, in training only.
            "dropout": 0.1,
        }
    )


def training() -> ConfigDict:
    """The training loop of the experts."""
    return ConfigDict(
        {
            # Optimiser steps, images per step, highest learning rate and the steps it rises over.
            "steps": 12_000,
            "batch_size": 64,
            "learning_rate": 1e-3,
            "warmup_steps": 500,
            # Decoupled weight decay of kernels (VDM 0.01, EDM none), Adam's second decay rate, and the
            # largest global norm of the gradient.
            "weight_decay": 0.0,
            "b2": 0.99,
            "clip": 1.0,
            # The learning rate after its rise: "cosine" (down to 0 at the last step) or "constant".
            "schedule": "cosine",
            # Decay per step of the exponential moving average of the weights.
            "ema_decay": 0.999,
            # EDM's objective: mean and standard deviation of ln sigma_edm.
            "p_mean": -1.2,
            "p_std": 1.2,
            # Probability of every operation of EDM's augmentation, of which the network is told; 0 for none.
            "augmentation": 0.0,
            # Noise draws per validation image, and validation images per call.
            "eval_repeats": 8,
            "eval_batch_size": 256,
            # Steps between two validations, two pictures of samples (0: none) and two checkpoints.
            "eval_every": 500,
            "sample_every": 2000,
            "checkpoint_every": 500,
            # Only estimate the memory at full size and take one step on a few random images.
            "dry_run": False,
            # Where the finished expert is written besides the workdir; empty for nowhere.
            "export": "",
        }
    )


def classifier() -> ConfigDict:
    """The classifier of the data set's labels that task "train_classifier" makes."""
    return ConfigDict(
        {
            # Optimiser steps at most (validation may end training earlier), images per step, Adam's
            # highest learning rate.
            "steps": 2000,
            "batch_size": 128,
            "learning_rate": 2e-3,
            # Channels of the first two convolutions.
            "width": 32,
            # Training images are moved by so many pixels at most, with "background" (level 0) or "mirror" (their
            # own rows and columns) moved in, and mirrored from left to right with probability 1/2.
            "shift": 1,
            "fill": "background",
            "flip": False,
        }
    )


def moe() -> ConfigDict:
    """Mixtures under a trained gate: tasks "moe", which refuses settings of the other alone, and "moe_ablations"."""
    return ConfigDict(
        {
            # Only say what the config needs (shapes, parameters, memory per device) and take a step of both phases
            # on miniature data.
            "dry_run": False,
            # The dry run's plan is for this many devices with this much memory each, in 2**30 bytes.
            "devices": 8,
            "device_memory": 80.0,
            # The gate: channels of its first convolution (its hidden layer is twice as wide), number of
            # convolutions, width of the noise embedding, gating dropout.
            "width": 16,
            "depth": 2,
            "embedding": 32,
            "dropout": 0.1,
            # Task "moe": widths that are tried once on validation images, each for so many steps; one width is
            # taken as it is.
            "widths": (8, 16, 32),
            "tuning_steps": 100,
            # Task "moe": steps of the gates that are trained on the validation images, where nothing is left to choose
            # a step with.
            "held_out_steps": 100,
            # Gates per method, each with its own seed.
            "seeds": 3,
            # Training of a gate: optimiser steps, images per step, highest learning rate (of the gate, also where
            # experts are trained with it) and the steps it rises over, decay of the weights' average, steps between
            # validations (with so many noise draws per image) and between checkpoints.
            "steps": 200,
            "batch_size": 64,
            "learning_rate": 5e-3,
            "warmup_steps": 20,
            "ema_decay": 0.98,
            "eval_every": 50,
            "eval_repeats": 4,
            "checkpoint_every": 100,
            # Write TensorBoard's event files beside losses.csv (needs the package tensorboardX).
            "tensorboard": False,
            # Weights of the load penalty, of the entropy penalty, and of the alignment with the slices.
            "load": 0.1,
            "entropy": 0.01,
            "align": 1.0,
            # Sparse mixtures: experts per image; slots per pass in units of an expert's share of uniform routing;
            # step of the balancing bias.
            "top_k": 2,
            "capacity_factor": 0.25,
            "bias_rate": 0.02,
            # Kinds of slices (jaxmerge/data/slices.py); the first kind is what specialists are made for.
            "slices": ("classes", "ink"),
            # Number of experts, and the numbers that are compared.
            "count": 4,
            "counts": (2, 4, 8),
            # Checkpoints that are the experts, in place of specialists of one base; as many as `count`.
            "pool": (),
            # What the experts start from: the checkpoint of `experts.low`, or fresh networks of section `expert`.
            "base": "checkpoint",
            # K whole networks ("full") or one trunk with adapters of this rank ("adapters").
            "experts": "full",
            "rank": 4,
            # What phase 2 trains: the "gate" alone over frozen experts, or "all".
            "parts": "gate",
            # Phase 1, every expert on its own slice: its steps, and the highest learning rate of experts.
            "warm_steps": 100,
            "experts_learning_rate": 3e-4,
            # Rows of task "moe_ablations" by their keys; "all" for every one.
            "rows": ("all",),
            # Study of a collapse: what is added to the first expert's logit, and steps of each training; 0 steps
            # leave it out.
            "collapse_offset": 3.0,
            "collapse_steps": 150,
            # Even strata of the bound over the noise range.
            "strata": 16,
            # Noise level of the reconstructions that PSNR and SSIM are measured on.
            "reconstruction_gamma": 0.0,
            # Latency: images per call and timed calls.
            "latency_batch": 64,
            "latency_repeats": 5,
        }
    )
