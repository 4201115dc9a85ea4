"""The way back: an expert of ours as a torch-compatible state dict.

A safetensors file with the public names and layouts, which PyTorch users load into the public code; its
header carries the description, so that the same file becomes the same expert again, bit for bit.
"""

import contextlib
import importlib.metadata
import os
import pathlib

import numpy as np
import safetensors.numpy

from checkpoints_convert.kinds import ours
from checkpoints_convert.names import edm as edm_names
from checkpoints_convert.names import origins
from checkpoints_convert.names import vdm as vdm_names
from checkpoints_convert.places import no_new_folders
from jaxmerge import checkpoint
from jaxmerge.experts import io
from jaxmerge.experts.base import Expert
from jaxmerge.experts.dhariwal_unet import DhariwalUNet
from jaxmerge.experts.edm import EDM
from jaxmerge.experts.vdm import VDM


def export(name: str, file: pathlib.Path, *, overwrite: bool = False) -> list[str]:
    """Writes an expert as a safetensors file, whole or not at all.

    Args:
        name: a shipped expert's name or a checkpoint's folder.
        file: ends in .safetensors.
        overwrite: replace an existing file.

    Returns:
        What a PyTorch user should know, in sentences.

    Raises:
        ValueError: no such expert, one whose architecture has no torch twin, or a file that is there.
        OSError: no space or no permission.
    """
    if file.suffix != ".safetensors":
        raise ValueError(f"experts are exported to files that end in .safetensors, got {file}.")
    if file.exists() and not overwrite:
        raise ValueError(f"{file} already exists; give another file, or --overwrite to replace it.")
    folder = io.shipped_path(name) if name in io.shipped_names() else pathlib.Path(name)
    metadata = checkpoint.load_metadata(folder)
    expert = io.load_expert(folder)
    kind, arrays, notes = state_dict(expert, learned=bool(metadata.get("learned_schedule")))
    provenance = {key: metadata[key] for key in ours.CARRIED if isinstance(metadata.get(key), str | int)}
    header = ours.header(kind, metadata["expert"], provenance)
    header["format"] = "pt"
    header["written_by"] = f"jaxmerge {importlib.metadata.version('jaxmerge')}"
    with no_new_folders(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        try:
            safetensors.numpy.save_file(arrays, beside, metadata=header)
            os.replace(beside, file)
        except safetensors.SafetensorError as error:
            raise ValueError(
                f"cannot write {file}: {error}; check the free space and the permissions."
            ) from error
        finally:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
    return notes


def state_dict(expert: Expert, *, learned: bool = False) -> tuple[str, dict[str, np.ndarray], list[str]]:
    """(kind, arrays by public name in torch's layout, notes) of an expert with a torch twin.

    Args:
        expert: in memory.
        learned: whether its noise schedule was learned, even if it ended where it began. A VDM whose native
            range is not that of its time input has a learned one in any case.

    Raises:
        ValueError: an expert without one; names the reason.
    """
    if isinstance(expert, EDM):
        return _edm(expert)
    if isinstance(expert, VDM):
        return _vdm(expert, learned=learned)
    raise ValueError(f"a {type(expert).__name__} is not a network, so there is nothing to export.")


def _edm(expert: EDM) -> tuple[str, dict[str, np.ndarray], list[str]]:
    net, resolution = expert.net, expert.shape[0]
    levels = len(net.down) + 1
    dhariwal = isinstance(net, DhariwalUNet)
    make = edm_names.dhariwal_unet if dhariwal else edm_names.song_unet
    filters = edm_names.resample_filters(
        resolution,
        levels,
        taps=(1, 1) if dhariwal else net.taps,
        residual=not dhariwal and net.residual,
    )
    notes = [
        f"load it into EDM's {_PRECONDITIONERS[expert.preconditioner]} ({'DhariwalUNet' if dhariwal else 'SongUNet'})"
    ]
    return "edm", origins.unfill(net, make(resolution, levels)) | filters, notes


_PRECONDITIONERS = {"edm": "EDMPrecond", "vp": "VPPrecond", "ve": "VEPrecond"}


def _vdm(expert: VDM, *, learned: bool) -> tuple[str, dict[str, np.ndarray], list[str]]:
    net, reasons = expert.net, []
    if expert.prediction != "noise" or expert.schedule != "VP":
        reasons.append(f"it predicts a {expert.prediction} in the {expert.schedule} schedule (i-DODE)")
    if net.fourier and net.fourier_order != "frequency":
        reasons.append("its Fourier features are ordered by channel")
    if net.pad_conditioning:
        reasons.append(f"its time embedding has {net.pad_conditioning} input more")
    if not np.isclose(net.norm_out.epsilon, 1e-5):
        reasons.append(f"its group norms have the epsilon {net.norm_out.epsilon:g} instead of 1e-05")
    if reasons:
        raise ValueError(
            f"the Flax flavour of VDM has no torch twin: {', '.join(reasons)}; only experts of the PyTorch flavour "
            "and of the EDM family can be exported."
        )
    arrays, notes = origins.unfill(net, vdm_names.torch_vdm), ["load it into the PyTorch VDM"]
    if net.fourier not in ((), (5, 6)):
        notes.append(
            f"its Fourier features have k = {', '.join(map(str, net.fourier))} where the public code has 5, 6: set "
            "them there"
        )
    low, high = expert.native_range
    if learned or (low, high) != tuple(expert.bounds):
        arrays |= {
            name: np.array(value, np.float32) for name, value in (("gamma.w", high - low), ("gamma.b", low))
        }
    return "vdm-torch", arrays, notes
