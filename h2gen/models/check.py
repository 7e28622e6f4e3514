"""Check a model's files, its licence and the free disk, without loading it and without the network."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from h2gen.errors import ModelError
from h2gen.families import recognize
from h2gen.families.single_file import other_kind
from h2gen.files import expanded
from h2gen.models import files
from h2gen.models.catalogue import Checkpoint, resolve
from h2gen.models.content_hash import check_bundled
from h2gen.models.entries import CATALOGUE
from h2gen.models.files import WEIGHTS, shown
from h2gen.models.lora_files import describe_lora
from h2gen.models.part_files import sections
from h2gen.wording import printable

OnRead = Callable[[Path, int, int], None]
"""Called while a file is hashed: with the file, the bytes read so far of all files, and their total size."""
_BLOCK = 2**22
_WITHOUT_WEIGHTS = re.compile(r"(Tokenizer\w*|Scheduler|Processor\w*|Extractor\w*)$")
"""Found in the classes of parts without weights."""
_SHA256, _SHA1 = re.compile("[0-9a-f]{64}"), re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class Line:
    """One thing that was checked.

    Args:
        subject: such as ``transformer``, ``licence`` or ``disk``.
        ok: whether it is as it should be.
        text: what was found.
        fix: what to do about it; empty if it is right.
    """

    subject: str
    ok: bool
    text: str
    fix: str = ""


@dataclass
class Checked:
    """What was found out about a model. ``ok`` if nothing keeps it from being loaded."""

    name: str
    kind: str
    location: str
    lines: list[Line] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return all(line.ok for line in self.lines)

    def add(self, subject: str, text: str) -> None:
        """Report something that is right."""
        self.lines.append(Line(subject, True, text))

    def wrong(self, subject: str, message: object, fix: str = "") -> None:
        """Report something that is wrong. The fix, unless it is given, follows the message's last semicolon."""
        problem, _, advice = str(message).rstrip(".").rpartition("; ")
        self.lines.append(Line(subject, False, problem if not fix and problem else str(message), fix or advice))


def check_model(name: str, base: str | None = None, *, hashes: bool = True, on_read: OnRead | None = None) -> Checked:
    """Check a model: an alias, a repository in the cache of the hub, a folder or a file.

    Args:
        name: of the model, or of a file with a transformer, a LoRA, a text encoder or an autoencoder.
        base: the model that supplies the rest of a single file; it is checked as well.
        hashes: compare the hashes of files with those that the hub gave; reads all of them.
        on_read: see ``OnRead``.

    Raises:
        ModelError: there is no such model or file.
    """
    report = Checked(name, "file", "")
    try:
        _check(report, base, hashes, on_read or (lambda _file, _done, _size: None))
    except OSError as error:  # such as a folder that may not be entered
        report.wrong("files", files.unreadable(Path(str(error.filename or report.name)), error))
    return report


def _check(report: Checked, base: str | None, hashes: bool, on_read: OnRead) -> None:
    name = report.name
    path = expanded(name)
    if name not in CATALOGUE and path.suffix.lower() in WEIGHTS and os.path.isfile(path):
        report.location = str(path)
        _check_file(report, path)
        if base is not None:
            _check_with_base(report, name, base)
        return
    checkpoint = resolve(name, base)
    report.kind, report.location = checkpoint.kind, str(checkpoint.location)
    if checkpoint.kind == "transformer":
        return _check_part(report, "transformer", Path(checkpoint.location))
    entry = CATALOGUE.get(name)
    if entry is not None:
        _check_licence(report, entry.gated, entry.licence, str(entry.repo))
    folder = _folder(report, checkpoint)
    if folder is not None:
        _check_folder(report, folder)
        if hashes and checkpoint.kind == "bundled":
            _check_bundled(report, checkpoint)
        elif hashes:
            _check_hashes(report, folder, on_read)


def _check_bundled(report: Checked, checkpoint: Checkpoint) -> None:
    try:
        check_bundled(checkpoint)
        report.add("hash", "all files are as shipped")
    except ModelError as error:
        report.wrong("hash", error)


def _check_licence(report: Checked, gated: bool, licence: str, repo: str) -> None:
    if not gated:
        return report.add("licence", f"{licence}; not gated")
    from huggingface_hub import get_token

    if get_token():
        return report.add("licence", f"{licence}; gated, and a token is set")
    from h2gen.models.hub import is_complete

    if is_complete(repo):
        return report.add("licence", f"{licence}; gated; no token is set, but the model is already downloaded")
    return report.wrong(
        "licence",
        f"{licence}; gated, and no token is set",
        f"accept it on https://huggingface.co/{repo}, then run `hf auth login`",
    )


def _folder(report: Checked, checkpoint: Checkpoint) -> Path | None:
    """Where a model is; None, and reported, if it is not on this machine."""
    if checkpoint.kind != "hub":
        return Path(checkpoint.location)
    from huggingface_hub.constants import HF_HUB_CACHE

    from h2gen.models.hub import cached

    folder = cached(str(checkpoint.location))
    entry = CATALOGUE.get(checkpoint.name)
    size = entry.download_gb * 1e9 if entry is not None else 0
    here = sum(file.stat().st_size for file in folder.rglob("*.safetensors") if file.is_file()) if folder else 0
    existing = next(path for path in (Path(HF_HUB_CACHE), *Path(HF_HUB_CACHE).parents) if path.exists())
    free = shutil.disk_usage(existing).free
    missing = max(0.0, size - here)
    needs = f"{_gb(missing)} to download" if missing > size / 100 else "nothing to download"
    if size and missing > free:
        report.wrong("disk", f"{_gb(free)} free, and {needs}", "free some space, or set HF_HOME to a larger disk")
    else:
        report.add("disk", f"{_gb(free)} free" + (f"; {needs}" if size else ""))
    if folder is None:
        fix = f'run `h2gen "a cat" --model {printable(checkpoint.name)}`, which downloads it'
        report.wrong("files", "not on this machine", fix)
    else:
        report.location = str(folder)
    return folder


def _check_folder(report: Checked, folder: Path) -> None:
    try:
        index = files.read_index(folder)
    except ModelError as error:
        return report.wrong("files", error)
    report.add("index", f"{printable(str(index['_class_name']))}")
    for name, (library, kind) in files.components(index).items():
        part = folder / name
        try:
            files.check_parts(folder, {name: [library, kind]})
            for file in sorted(part.glob("*.json")):
                _check_json(file)
        except ModelError as error:
            report.wrong(name, error)
            continue
        if _WITHOUT_WEIGHTS.search(kind):
            report.add(name, "complete")
        else:
            _check_part(report, name, part)


def _check_json(file: Path) -> None:
    import json

    try:
        json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise files.unreadable(file, error) from error
    except (ValueError, RecursionError) as error:
        mend = files.again(file, damaged=True)
        raise ModelError(f"{shown(file)} is damaged: not valid JSON; {mend}.") from error


def _check_part(report: Checked, name: str, part: Path) -> None:
    """Check a part with weights: its files are complete, and for a class of diffusers they match its config."""
    try:
        config = files.read_json(part / "config.json")
        found, variant = files.find_weights(part)
        stored = {tensor: each for file in found for tensor, each in files.read_header(file).tensors.items()}
        fits = _check_shapes(part, config, stored)
    except ModelError as error:
        return report.wrong(name, error)
    size = sum(file.stat().st_size for file in found)
    count = f"{_files(len(found))}, {_gb(size)}"
    kind = f" ({variant})" if variant else ""
    return report.add(name, f"{count}{kind}; complete" + ("; its tensors match its config.json" if fits else ""))


def _check_shapes(part: Path, config: dict[str, Any], stored: dict[str, files.Stored]) -> bool:
    """Compare a part's tensors with its class, without loading weights. Returns whether that was possible."""
    import diffusers
    import torch

    from h2gen.models.load import quiet

    with quiet():
        cls: Any = getattr(diffusers, str(config.get("_class_name")), None)
        is_model = isinstance(cls, type) and issubclass(cls, diffusers.ModelMixin)
    if not is_model or "quantization_config" in config:
        return False
    try:
        with quiet(), torch.device("meta"):
            wanted = {name: tuple(each.shape) for name, each in cls.from_config(config).state_dict().items()}
    except Exception as error:
        reason = printable(str(error))[:150]
        raise ModelError(f"{shown(part / 'config.json')} cannot be used ({reason}); {files.again(part)}.") from error
    if missing := sorted(wanted.keys() - stored.keys()):
        raise ModelError(
            f"{shown(part)} lacks {len(missing)} of its weights, such as {printable(missing[0])!r}; "
            f"{files.again(part / '*', damaged=True)}."
        )
    if other := [name for name, shape in wanted.items() if stored[name].shape != shape]:
        raise ModelError(
            f"{shown(part)} has weights whose shapes differ from its config.json, such as {printable(other[0])!r}; "
            f"{files.again(part / '*', damaged=True)}."
        )
    return True


def _check_file(report: Checked, path: Path) -> None:
    """Check a single file: what it holds, whether it is complete, and whether h2gen reads its layout."""
    from h2gen.models.quantized import check_layout
    from h2gen.models.single_file import open_file

    try:
        stored = files.tensors_of(path).tensors
        family, parts = recognize(stored), sections(path, stored)
        kind = other_kind(stored, family, path)
        if kind is not None and kind.what == "a LoRA":
            size = _gb(path.stat().st_size)
            return report.add("file", f"a LoRA {describe_lora(path)}; complete, {size}; use it with --lora")
        if family is None and parts:
            check_layout(path, stored)
            what = " and ".join(f"{part.title} (use it with {part.option})" for part in parts)
        else:
            what = f"a transformer of {open_file(path).family.title}"
            inside = [part.title for part in parts if part.prefix]
            what += f", with {' and '.join(inside)}" if inside else ""
    except ModelError as error:
        return report.wrong("file", error)
    dtypes = ", ".join(sorted({each.dtype for each in stored.values()}))
    return report.add("file", f"{what}; complete, {_gb(path.stat().st_size)}; {dtypes}")


def _check_with_base(report: Checked, name: str, base: str) -> None:
    from h2gen.models.single_file import check_base, check_family, check_fit, open_file

    for line in check_model(base, hashes=False).lines:
        report.lines.append(Line(f"base: {line.subject}", line.ok, line.text, line.fix))
    if not report.ok:
        return
    checkpoint = resolve(name, base)
    try:
        file = open_file(Path(checkpoint.location))
        check_family(file, checkpoint)
        folder = _folder(Checked(base, "", ""), resolve(base))
        if folder is not None:
            check_base(file, checkpoint, folder)
            check_fit(file, folder)
            report.add("fit", "the file's tensors match its base")
    except ModelError as error:
        report.wrong("fit", error)


def _check_hashes(report: Checked, folder: Path, on_read: OnRead) -> None:
    """Compare the files of a folder with the hashes that the hub gave when it sent them."""
    known = [(file, digest) for file in sorted(folder.rglob("*")) if (digest := _known_hash(folder, file))]
    size, done, wrong = sum(file.stat().st_size for file, _ in known), 0, 0
    for file, digest in known:
        hasher = hashlib.sha256() if len(digest) == 64 else hashlib.sha1(usedforsecurity=False)
        if len(digest) == 40:  # the hub names small files as git does
            hasher.update(f"blob {file.stat().st_size}\0".encode())
        try:
            with file.open("rb", buffering=0) as opened:
                while block := opened.read(_BLOCK):
                    hasher.update(block)
                    done += len(block)
                    on_read(file, done, size)
        except OSError as error:
            wrong += 1
            report.wrong("hash", files.unreadable(file, error))
            continue
        if hasher.hexdigest() != digest:
            wrong += 1
            mend = files.again(file, damaged=True)
            report.wrong("hash", f"{shown(file)} is not the file that the hub sent: its hash differs; {mend}")
    if not known:
        report.add("hash", "no hashes are known for these files")
    elif not wrong:
        report.add("hash", f"{_files(len(known))}, {_gb(size)}; they match the hub's hashes")


def _known_hash(folder: Path, file: Path) -> str | None:
    """The hash of a file from the hub: in the hub's cache, the linked file's name; elsewhere, from a metadata file."""
    if not file.is_file() or ".cache" in file.relative_to(folder).parts:
        return None
    digest = ""
    if file.is_symlink():
        digest = file.resolve().name
    else:
        note = folder / ".cache" / "huggingface" / "download" / f"{file.relative_to(folder)}.metadata"
        lines = list(_lines(note))
        digest = lines[1] if len(lines) > 1 else ""
    return digest if _SHA256.fullmatch(digest) or _SHA1.fullmatch(digest) else None


def _lines(path: Path) -> Iterator[str]:
    try:
        yield from path.read_text("utf-8").splitlines()
    except (OSError, ValueError):
        return


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 5e7 else f"{size / 1e6:.1f} MB"
