"""What the scripts share: say how a dataset is had, fetch what may be fetched, unpack it safely, and let the layout doctor look at the copy.

    python data_scripts/NAME.py --root ROOT                     is the copy there and whole? if not, how is it had?
    python data_scripts/NAME.py --root ROOT --archives FOLDER   unpack the archives that you put into FOLDER, then look
    python data_scripts/NAME.py --root ROOT --download          fetch into FOLDER (ROOT/archives if not given) what needs no login, unpack, look

Every step can be interrupted and begun again: a file with its final name is whole, and what is there is not fetched or unpacked twice. Exit code: 0 the copy can be used, 1 it cannot (yet), 2 something went wrong.
"""
import argparse
import contextlib
import hashlib
import json
import lzma
import os
import platform
import re
import shutil
import stat
import sys
import tarfile
import time
import zipfile
import zlib
from dataclasses import dataclass
from fnmatch import fnmatch
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from kdda.data.datasets import check, find_layout

PIECE = 1 << 20
DAMAGE = OSError, EOFError, RuntimeError, ValueError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile     # what comes of reading a damaged archive


class Refused(Exception):
    "Something that a script will not do, with the reason."


@dataclass(frozen=True)
class Archive:
    "A file that a dataset is published in."
    name: str                 # or a pattern, for those of many parts
    url: str | tuple | None = None    # where it is had without a login; several addresses: of its parts, in order
    sha256: str | None = None # where it is known
    below: str = ""           # the part of the archive that is wanted; it is taken off the paths
    into: str = ""            # folder of the root that it goes to
    within: str = ""          # folder of the root where it turns up when another one has been unpacked


# ---- fetching

def fetch(url, file, sha256=None, tries=5, wait=1., timeout=30, say=print):
    "Download to `file`, going on where an earlier attempt stopped; whole and verified before it gets its name."
    if file.exists(): return verify(file, sha256)
    part, about = _receive_all(url, file, tries, wait, timeout, say)
    _accept(part, file, sha256, _note(about).get("total") is None, about)


def fetch_parts(urls, file, sha256=None, **options):
    "`fetch` of an archive that is published in parts: each goes on where it stopped, then they are joined."
    if file.exists(): return verify(file, sha256)
    whole, pieces = file.with_name(file.name + ".part"), [file.with_name(f"{file.name}.{k}.part") for k in range(len(urls))]
    for url, piece in zip(urls, pieces):
        if piece.exists(): continue
        part, about = _receive_all(url, piece, **options)
        os.replace(part, piece)
        _forget(about)                                     # last: without its note the part would be fetched again
    with open(whole, "wb") as out:
        for piece in pieces:
            with open(piece, "rb") as f: shutil.copyfileobj(f, out, PIECE)
    _accept(whole, file, sha256, True, *pieces)


def _accept(whole, file, sha256, to_the_end, *beside):
    "What is received gets its name if it is sound; if not, it goes. What lay beside it goes in either case."
    try:
        check_archive(whole, file.name, to_the_end)
        verify(whole, sha256)
    except Refused:
        _forget(whole, *beside)
        raise
    os.replace(whole, file)
    _forget(*beside)


def _receive_all(url, file, tries=5, wait=1., timeout=30, say=print):
    "-> the whole file under its passing name, and what is noted about it."
    file.parent.mkdir(parents=True, exist_ok=True)
    part, about, failure = file.with_name(file.name + ".part"), file.with_name(file.name + ".part.json"), None
    for attempt in range(tries):
        if attempt:
            say(f"  {failure}; trying again ({attempt} of {tries - 1})")
            time.sleep(wait * 2 ** (attempt - 1))
        try:
            _receive(url, part, about, timeout, say)
            return part, about
        except HTTPError as e:
            failure = f"the server says {e.code} {e.reason}"
            if 400 <= e.code < 500 and e.code not in (408, 416, 429): raise Refused(f"{url}: {failure}") from None
            if e.code == 416: _forget(part, about)
        except (URLError, OSError, HTTPException, _Short) as e: failure = str(getattr(e, "reason", e)) or type(e).__name__
    raise Refused(f"{url}: {failure}; {_size(part)} bytes are kept in {part}, run the same command again to go on")


class _Short(Exception): pass

def _size(file): return file.stat().st_size if file.exists() else 0

def _forget(*files):
    for f in files: f.unlink(missing_ok=True)

def _note(file):
    "What was noted, if it can be read."
    try: note = json.loads(file.read_text())
    except (OSError, ValueError): return {}
    return note if isinstance(note, dict) else {}

def _write_note(file, note, **options):
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    part.write_text(json.dumps(note, **options))
    os.replace(part, file)


def _receive(url, part, about, timeout, say):
    "One attempt: append what is missing to `part`."
    have, known = _size(part), _note(about)
    if have and have == known.get("total"): return         # killed before it got its name; a range past the end would be refused
    if have and not known.get("tag"): have = 0             # nothing says that the rest would be of the same file
    headers = {"User-Agent": "kdda data scripts"} | ({"Range": f"bytes={have}-", "If-Range": known["tag"]} if have else {})
    with urlopen(Request(url, headers=headers), timeout=timeout) as answer:
        total = answer.headers.get("Content-Length")
        if answer.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
            raise Refused(f"{url}: the server answered with a web page instead of the file: it wants a login, or the file has moved. Fetch it with a browser and pass --archives")
        if answer.status == 206:
            span = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", answer.headers.get("Content-Range", ""))
            if not span or int(span[1]) != have:
                _forget(part, about)
                raise _Short("the server went on at another place")
            total = int(span[3])
        else: have, total = 0, None if total is None else int(total)
        tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        _write_note(about, {"url": url, "tag": None if tag is None or tag.startswith("W/") else tag, "total": total})
        if total and shutil.disk_usage(part.parent).free < total - have: raise Refused(f"{url}: {total - have} bytes are missing, more than there is room for in {part.parent}")
        with open(part, "ab" if have else "wb") as out:
            shown = have
            while piece := answer.read(PIECE):
                out.write(piece)
                have += len(piece)
                if total and total > 100 * PIECE and have - shown > total // 20:
                    shown = have
                    say(f"  {have / total:4.0%} of {total / 1e9:.1f} GB")
    if total is not None and have < total: raise _Short(f"the connection broke after {have} of {total} bytes")
    if total is not None and have > total:
        _forget(part, about)
        raise _Short(f"{have} bytes came, {total} were announced")


def verify(file, sha256=None):
    "The SHA-256 of a file; refuses one that is not what it should be."
    digest = hashlib.sha256()
    with open(file, "rb") as f:
        while piece := f.read(PIECE): digest.update(piece)
    if sha256 and digest.hexdigest() != sha256:
        raise Refused(f"{file}: its SHA-256 is {digest.hexdigest()}, it must be {sha256}: damaged, or another version. Delete it and fetch it again")
    return digest.hexdigest()


def check_archive(file, name=None, to_the_end=False):
    "Refuse a file that is no archive, above all the web page that stands in for one; where nobody said how long it is, a tar is read to its end."
    with open(file, "rb") as f: start = f.read(512)
    if not start: raise Refused(f"{name or file}: it is empty")
    if re.match(rb"\s*<(!doctype|html|\?xml|head)", start, re.I): raise Refused(f"{name or file}: it is a web page, not an archive: log in with a browser and fetch it there")
    if not zipfile.is_zipfile(file) and not _is_tar(file): raise Refused(f"{name or file}: it is neither a zip nor a tar archive, or it is cut off. Delete it and fetch it again")
    if to_the_end and not zipfile.is_zipfile(file) and not _is_tar(file, to_the_end): raise Refused(f"{name or file}: it is cut off or damaged. Fetch it again")


def _is_tar(file, to_the_end=False):
    try:
        with _open_tar(file) as tar: return all(True for _ in _members(tar)) if to_the_end else True
    except DAMAGE: return False


def _open_tar(file):
    "A tar archive. Long names are read into memory before anybody can look at them, so those that no file system would take are refused."
    class Header(tarfile.TarInfo):
        @classmethod
        def frombuf(cls, *args):
            try: info = super().frombuf(*args)
            except tarfile.InvalidHeaderError as e: raise tarfile.ReadError(f"the head of an entry is wrong: {e}") from None     # tarfile would take it for the end
            if info.type in b"LKxgX" and info.size > PIECE: raise Refused(f"{file}: a name in it takes {info.size} bytes: a bomb?")
            return info
    return tarfile.open(file, tarinfo=Header)


def _members(tar):
    "The entries, and then what follows them: the checksum of a compressed stream is compared only at its very end."
    yield from tar
    for _ in range(1024):
        if not tar.fileobj.read(PIECE): return
    raise tarfile.ReadError("more than a gigabyte follows its last entry")


# ---- unpacking

def unpack(file, root, below="", into="", most=None, ratio=200):
    """Unpack a zip or tar archive below `root`; every entry is looked at before the first is written.

    Refused: paths that lead out, links, devices, encrypted entries; and bombs, which are archives that would unpack to more than `most` bytes
    (default: the room on the disk) or, beyond a gigabyte, to more than `ratio` times their size. A file that is there in its size is left alone.
    """
    check_archive(file)
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    most = shutil.disk_usage(root).free if most is None else most
    try:
        with (_Zip if zipfile.is_zipfile(file) else _Tar)(file) as archive:
            total, wanted, seen, folders = 0, [], set(), set()
            for entry, name, size in archive.entries():
                total += max(size, 0)
                if total > most: raise Refused(f"{file}: it unpacks to more than {most} bytes")
                if total > max(1 << 30, ratio * file.stat().st_size): raise Refused(f"{file}: it unpacks to more than {ratio} times its size: a bomb?")
                target = _target(file, root, name, below, into)
                if target is None: continue
                if target in seen: raise Refused(f"{file}: {name!r} is in it twice")
                seen.add(target)
                folders.update(target.parents)
                if target in folders or not seen.isdisjoint(target.parents): raise Refused(f"{file}: {name!r} is a file and a folder in it")
                wanted.append((entry, target, size))
            if below and not wanted: raise Refused(f"{file}: there is no {below!r} in it")
            for n, (entry, target, size) in enumerate(wanted):
                if target.is_file() and not target.is_symlink() and target.stat().st_size == size: continue
                _write(file, archive.open(entry), target, size)
            return len(wanted)
    except DAMAGE as e:
        if getattr(e, "errno", None): raise                # the disk, not the archive
        raise Refused(f"{file}: it is damaged ({type(e).__name__}: {e}). Delete it and fetch it again") from None


def _target(file, root, name, below, into):
    "Where an entry goes, or None if it is not wanted."
    path = PurePosixPath(name)
    if not name or "\0" in name or "\\" in name or path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", name): raise Refused(f"{file}: {name!r} leads out of the folder")
    parts, wanted = path.parts, PurePosixPath(below).parts
    if parts[:len(wanted)] != wanted: return None
    target = root.joinpath(into, *parts[len(wanted):])
    if not target.parent.resolve().is_relative_to(root.resolve()): raise Refused(f"{file}: {name!r} goes through a link that leads out of {root}")
    if target.is_dir(): raise Refused(f"{file}: {name!r} is a folder already")
    return target


def _write(file, source, target, size):
    "One entry, under its name only when it is whole; never more than it announced."
    target.parent.mkdir(parents=True, exist_ok=True)
    part, left = target.with_name(f".{os.getpid()}.part.{target.name}"[:250]), size
    try:
        with source, open(part, "wb") as out:
            while piece := source.read(min(PIECE, left + 1)):
                left -= len(piece)
                if left < 0: raise Refused(f"{file}: {target.name} is larger than it says")
                out.write(piece)
        if left: raise Refused(f"{file}: {target.name} ends {left} bytes too early. Delete the archive and fetch it again")
        os.replace(part, target)
    finally: part.unlink(missing_ok=True)


class _Zip:
    def __init__(self, file): self.file, self.zip = file, zipfile.ZipFile(file)
    def __enter__(self): return self
    def __exit__(self, *_): self.zip.close()
    def open(self, entry): return self.zip.open(entry)

    def entries(self):
        packed = 0
        for i in self.zip.infolist():
            kind = stat.S_IFMT(i.external_attr >> 16)
            if i.is_dir():
                if ".." in PurePosixPath(i.filename).parts or i.filename.startswith("/"): raise Refused(f"{self.file}: {i.filename!r} leads out of the folder")
                continue
            if kind not in (0, stat.S_IFREG): raise Refused(f"{self.file}: {i.filename!r} is a link or a device")
            if i.flag_bits & 1: raise Refused(f"{self.file}: {i.filename!r} is encrypted")
            packed += i.compress_size
            if packed > self.file.stat().st_size: raise Refused(f"{self.file}: its entries overlap: a bomb?")
            yield i, i.filename, i.file_size


class _Tar:
    def __init__(self, file): self.file, self.tar = file, _open_tar(file)
    def __enter__(self): return self
    def __exit__(self, *_): self.tar.close()
    def open(self, entry): return self.tar.extractfile(entry)

    def entries(self):
        for m in _members(self.tar):
            if m.isdir():
                if ".." in PurePosixPath(m.name).parts or m.name.startswith("/"): raise Refused(f"{self.file}: {m.name!r} leads out of the folder")
                continue
            if not m.isreg() or m.issparse(): raise Refused(f"{self.file}: {m.name!r} is a link or a device")
            yield m, m.name, m.size


# ---- the scripts

def main(name, archives, access, steps="", note="", argv=None):
    "The command line of a script: `access` says who may have the data, `steps` what to do by hand (with {root} for the folder)."
    layout = find_layout(name)
    parser = argparse.ArgumentParser(description=f"Get {layout.name}, and look whether a copy of it is whole.")
    parser.add_argument("--root", type=_path, default=Path("data")/layout.name, help="where it is or shall be (default: %(default)s)")
    parser.add_argument("--archives", type=_path, help="folder with archives, downloaded by you or by --download (default: ROOT/archives)")
    parser.add_argument("--download", action="store_true", help="fetch what may be had without a login")
    parser.add_argument("--workers", type=int, help="threads that look at the files (default: one for each core)")
    args = parser.parse_args(argv)
    if (args.workers or 0) < 0: parser.error(f"--workers {args.workers}: it must be 1 or more; leave it out for one thread each core")
    if args.archives and not args.archives.is_dir() and not args.download: parser.error(f"--archives: no such folder: {args.archives}; give the one that you put the archives into")
    folder, skipped = args.archives or args.root/"archives", []
    try:
        if args.download: download(archives, folder)
        if args.archives or args.download or folder.is_dir(): skipped = unpack_all(archives, folder, args.root)
        report = check(layout, args.root, workers=args.workers, progress=sys.stdout.isatty())
    except (Refused, OSError) as e:
        print(f"{layout.name}: {e}", file=sys.stderr)
        sys.exit(2)
    if not report.ok:
        print(how_to(layout, archives, access, steps, note).format(root=args.root, name=layout.name), end="\n\n")
        if skipped: print(f"{args.root/'.unpacked.json'} says that {', '.join(skipped)} was unpacked before: if files were lost since, delete it and run the same command again", end="\n\n")
    print(report)
    sys.exit(not report.ok)


def _path(text): return Path(os.path.expanduser(text))     # `--root=~/data`: a shell leaves this `~` alone


def how_to(layout, archives, access, steps, note):
    "Who may have it, which files it is, and what to do with them."
    archives = [a for a in archives if not a.within]
    free = [a for a in archives if a.url]
    lines = [f"How to get {layout.name}", f"  from      {layout.address}", f"  licence   {layout.licence}", f"  access    {access}"]
    lines += [f"  {'archives' if not k else '':8}  {a.name}{'' if a.url else '   (by hand)'}" for k, a in enumerate(archives)]
    lines += [f"  {'steps' if not k else '':8}  {line.strip()}" for k, line in enumerate(steps.strip().splitlines()) if line.strip()]
    if len(free) == len(archives) and archives: lines += ["  then      python data_scripts/{name}.py --root {root} --download"]
    elif archives: lines += [f"  then      put {'the archives' if not free else 'those that need a browser'} into {{root}}/archives and run python data_scripts/{{name}}.py --root {{root}}{' --download' if free else ''}"]
    if note: lines += [f"  note      {note}"]
    return "\n".join(lines)


def download(archives, folder):
    "Fetch the archives that have an address."
    free = [a for a in archives if a.url]
    if not free: return print("no address of its archives is known here; see the steps")
    with _alone(folder):
        for a in free:
            print(f"{a.name} from {a.url}")
            (fetch if isinstance(a.url, str) else fetch_parts)(a.url, folder/a.name, a.sha256)


@contextlib.contextmanager
def _alone(folder):
    "Hold `folder` for this process, until it ends: two would append to the same file."
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder/".lock", "a+") as f:
        try:
            if os.name == "nt":
                import msvcrt
                f.seek(PIECE)                              # behind the text: what is locked cannot be read there
                msvcrt.locking(f.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            f.seek(0)
            raise Refused(f"{folder}: {f.read() or 'another process'} is downloading to it. Wait until it is done, or stop it, and run the same command again") from None
        f.truncate(0)
        f.write(f"process {os.getpid()} on {platform.node()}")
        f.flush()
        yield


def _known(archives, there, root):
    "The archives that are there, and then those that turned up in what was unpacked."
    for a in sorted(archives, key=lambda a: bool(a.within)):
        for f in sorted((root/a.within).glob(a.name)) if a.within else there:
            if fnmatch(f.name, a.name): yield f, a


def unpack_all(archives, folder, root):
    "Unpack the archives that are there, except those of which `.unpacked.json` says that they are done. -> the names of these"
    done_file = root/".unpacked.json"
    done, skipped = _note(done_file), []
    there = sorted(f for f in folder.iterdir() if f.is_file() and not f.name.endswith((".part", ".part.json", ".lock"))) if folder.is_dir() else []
    for f in there:
        if not any(fnmatch(f.name, a.name) for a in archives if not a.within): print(f"{f.name}: no archive of this dataset is called so; left alone")
    for f, a in _known(archives, there, root):
        state = [f.stat().st_size, f.stat().st_mtime_ns]
        noted = done.get(f.name)
        if isinstance(noted, list) and noted[:2] == state:
            skipped.append(f.name)
            continue
        digest = verify(f, a.sha256)
        n = unpack(f, root, a.below, a.into)
        print(f"{f.name}: {n} files unpacked, SHA-256 {digest}")
        done[f.name] = state + [digest]
        _write_note(done_file, done, indent=1)
    return skipped
