"""Public checkpoints by short name: where they lie, what they are, what their owners allow.

The EDM files and their FID references are listed in NVlabs/edm's README, the VDM ones in
google-research/vdm's, those of i-DODE in thu-ml/i-DODE's and the Inception weights in pytorch-fid's
releases; LPIPS's linear layers lie in richzhang/PerceptualSimilarity, its backbones at torchvision. Owners
publish no checksums except the one of the Inception file (and the first digits of torchvision's, in their
names); the checksum of any other file is recorded at its first download and checked from then on
(`download.py`).
"""

import difflib
from typing import NamedTuple

NVIDIA = "CC BY-NC-SA 4.0 (NVIDIA; no commercial use, https://creativecommons.org/licenses/by-nc-sa/4.0/)"
APACHE = "Apache-2.0 (google-research/vdm)"
UNSTATED = (
    "Apache-2.0 (code); none stated for the weights (thu-ml/i-DODE; ask its owners before you use them for more than "
    "research)"
)
UNKNOWN = "not known; ask whoever made the file"
INCEPTION = "Apache-2.0 (TensorFlow's Inception-v3 of 2015-12-05, converted by pytorch-fid)"
LPIPS = "BSD-2-Clause (richzhang/PerceptualSimilarity)"
TORCHVISION = "BSD-3-Clause (torchvision)"

# In the words of `--kind`.
KINDS = ("edm", "vdm-torch", "vdm-flax", "idode-vp", "idode-sp", "idode-noise", "inception", "lpips")
REFERENCE = "fid-reference"

_EDM = "https://nvlabs-fi-cdn.nvidia.com/edm"
_VDM = "gs://gresearch/vdm/cifar10"
_LPIPS = "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1"
_TORCHVISION = "https://download.pytorch.org/models"
_IDODE = (
    "It lies in the Google Drive folder https://drive.google.com/drive/folders/1cZ7zkWWooD2E8n_9slDMAA8w3KmkjzOC, "
    "from which a program cannot fetch it: download its ckpt-N.flax with a browser."
)


class Entry(NamedTuple):
    """A public file.

    Attributes:
        name: short name, the SOURCE of a command line.
        url: https:// or gs://; a gs:// folder stands for the newest ckpt-N.flax in it. Empty where a
            program cannot fetch the file.
        kind: what the file holds, in the words of `--kind`; "fid-reference" for a set of statistics.
        data_set: what it was trained on.
        network: its architecture, in a few words.
        licence: what its owners allow.
        sha256: of the file, or None where the owners publish none.
        note: what else a user should know, one sentence.
        by_hand: how to get a file that has no url, one sentence.
    """

    name: str
    url: str
    kind: str
    data_set: str
    network: str
    licence: str
    sha256: str | None = None
    note: str = ""
    by_hand: str = ""

    @property
    def short_licence(self) -> str:
        """The licence without the last remark in brackets."""
        return self.licence.rsplit(" (", 1)[0]


_NETWORKS = {"VP": "DDPM++", "VE": "NCSN++"}


def _edm_files() -> list[Entry]:
    models = [
        *(
            ("cifar10-32x32", f"{how}-{net}", "CIFAR-10")
            for how in ("uncond", "cond")
            for net in ("vp", "ve")
        ),
        *(("ffhq-64x64", f"uncond-{net}", "FFHQ 64x64") for net in ("vp", "ve")),
        *(("afhqv2-64x64", f"uncond-{net}", "AFHQv2 64x64") for net in ("vp", "ve")),
    ]
    entries = []
    for data, variant, data_set in models:
        older = "VP" if variant.endswith("vp") else "VE"
        classes = ", 10 classes" if variant.startswith("cond") else ""
        for prefix, folder, preconditioning, note in (
            ("edm", "", "EDM", "EDM's own training (config F)."),
            ("baseline", "baseline/", older, "The older training that EDM starts from (config A)."),
        ):
            name = f"{prefix}-{data}-{variant}"
            url = f"{_EDM}/pretrained/{folder}{name}.pkl"
            network = f"{_NETWORKS[older]}, {preconditioning} preconditioning{classes}"
            entries.append(Entry(name, url, "edm", data_set, network, NVIDIA, note=note))
    adm = "edm-imagenet-64x64-cond-adm"
    url = f"{_EDM}/pretrained/{adm}.pkl"
    network = "ADM, EDM preconditioning, 1000 classes"
    entries.append(Entry(adm, url, "edm", "ImageNet 64x64", network, NVIDIA, note="EDM's own training."))
    return entries


def _vdm_files() -> list[Entry]:
    plain = f"{_VDM}/checkpoint-final/checkpoints-0"
    augmented = f"{_VDM}/aug-checkpoint-final/checkpoints-0"
    return [
        Entry("vdm-cifar10", plain, "vdm-flax", "CIFAR-10", "VDM", APACHE, note="Bound 2.637 bits/dim."),
        Entry(
            *("vdm-cifar10-aug", augmented, "vdm-flax", "CIFAR-10, augmented", "VDM", APACHE),
            note="Bound 2.522 bits/dim, trained with augmentation.",
        ),
    ]


def _idode_files() -> list[Entry]:
    models = [
        ("cifar10-vp", "CIFAR-10", "2.56 bits/dim."),
        ("cifar10-aug-vp", "CIFAR-10, augmented", "2.42 bits/dim."),
        ("imagenet32-vp", "ImageNet 32x32, old version", "3.69 bits/dim."),
        ("imagenet32-new-vp", "ImageNet 32x32, new version", "3.43 bits/dim."),
    ]
    return [
        Entry(f"idode-{name}", "", "idode-vp", data_set, "VDM, velocity", UNSTATED, note=note, by_hand=_IDODE)
        for name, data_set, note in models
    ]


def _metric_files() -> list[Entry]:
    inception = "pt_inception-2015-12-05-6726825d.pth"
    entries = [
        Entry(
            "fid-inception",
            f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{inception}",
            "inception",
            "ImageNet",
            "Inception-v3",
            INCEPTION,
            sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
            note="The network behind every published FID.",
        )
    ]
    for file, data_set, note in (
        ("cifar10-32x32", "CIFAR-10", ""),
        ("ffhq-64x64", "FFHQ 64x64", ""),
        ("afhqv2-64x64", "AFHQv2 64x64", ""),
        ("imagenet-64x64", "ImageNet 64x64", "For edm-imagenet-64x64-cond-adm."),
    ):
        entries.append(
            Entry(
                *(f"fid-reference-{file}", f"{_EDM}/fid-refs/{file}.npz", REFERENCE, data_set),
                *("statistics of FID's Inception-v3", NVIDIA),
                note=note or "Mean and covariance of Inception's features.",
            )
        )
    return entries


def _lpips_files() -> list[Entry]:
    """The linear layers, then the backbones, which alone are no LPIPS."""
    backbones = {
        "alex": ("AlexNet", "torchvision-alexnet", "alexnet-owt-7be5be79.pth"),
        "vgg": ("VGG16", "torchvision-vgg16", "vgg16-397923af.pth"),
    }
    return [
        Entry(
            *(f"lpips-{name}", f"{_LPIPS}/{name}.pth", "lpips", "BAPPS"),
            *(f"linear layers of LPIPS 0.1 for {network}", LPIPS),
            note=f"Needs --backbone {backbone}.",
        )
        for name, (network, backbone, _) in backbones.items()
    ] + [
        Entry(
            *(backbone, f"{_TORCHVISION}/{file}", "lpips", "ImageNet"),
            *(f"{network}, backbone of LPIPS", TORCHVISION),
            note=f"For lpips-{name}, as --backbone.",
        )
        for name, (network, backbone, file) in backbones.items()
    ]


ENTRIES: dict[str, Entry] = {
    entry.name: entry
    for entry in [*_edm_files(), *_vdm_files(), *_idode_files(), *_metric_files(), *_lpips_files()]
}


# Public files that are known and cannot be converted, with the reason.
REFUSED = {
    "baseline-imagenet-64x64-cond-adm": "it has a preconditioner of its own (iDDPMPrecond), which is not supported; "
    "edm-imagenet-64x64-cond-adm is the same network with EDM's training",
}


def find(name: str) -> Entry:
    """The entry of a short name.

    Raises:
        ValueError: a file that cannot be converted, with the reason, or no such name; offers the nearest one.
    """
    if name in ENTRIES:
        return ENTRIES[name]
    if name in REFUSED:
        raise ValueError(f"{name} cannot be converted: {REFUSED[name]}.")
    near = [known for known in ENTRIES if known.startswith(name)] or difflib.get_close_matches(
        name, ENTRIES, 1, 0.4
    )
    hint = f"did you mean {near[0]!r}?" if near else "--list shows the known names."
    raise ValueError(f"{name!r} is neither a file, nor a URL, nor a known checkpoint; {hint}")


def by_url(url: str) -> Entry | None:
    """The entry of a whole address, or of its file's name where that tells: all versions of LPIPS have the same."""
    whole = next((entry for entry in ENTRIES.values() if entry.url == url), None)
    named = by_file_name(url.rsplit("/", 1)[-1])
    return whole or (None if named is not None and named.kind == "lpips" else named)


def by_file_name(file_name: str) -> Entry | None:
    """The entry whose file has this name, for licence and data set of a local copy."""
    for entry in ENTRIES.values():
        if entry.url and not entry.url.startswith("gs://") and entry.url.rsplit("/", 1)[-1] == file_name:
            return entry
    return None
