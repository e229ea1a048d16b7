"The scripts that get datasets: archives made from the world, hostile archives, a server that drops, cuts off and asks for logins."
import gzip
import importlib
import io
import json
import os
import random
import shutil
import stat
import subprocess
import sys
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kdda.data.datasets import Folder, check, layouts
from kdda.data.world import World

REPO = Path(__file__).parent.parent
SCRIPTS = sorted(f.stem for f in (REPO/"data_scripts").glob("*.py") if f.stem != "common")
sys.path.insert(0, str(REPO/"data_scripts"))
import common
from common import Archive, Refused, fetch, unpack

LAYOUTS = layouts()
PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>"


def run(name, *args):
    done = subprocess.run([sys.executable, REPO/"data_scripts"/f"{name}.py", *map(str, args)], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"})
    return done.returncode, done.stdout + done.stderr

def call(module, *args, capsys):
    "A script without the price of a process."
    sys.argv = [f"{module}.py", *map(str, args)]
    with pytest.raises(SystemExit) as e: common.main(module, importlib.import_module(module).ARCHIVES, access="free", argv=list(map(str, args)))
    said = capsys.readouterr()
    return e.value.code, said.out + said.err

def files(root): return sorted(p.relative_to(root).as_posix() for p in Path(root).rglob("*") if p.is_file() and p.name != ".unpacked.json")

def pack(folder, archive, prefix=""):
    "A zip or tar of a folder."
    archive.parent.mkdir(parents=True, exist_ok=True)
    names = files(folder)
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as z:
            for n in names: z.write(folder/n, prefix + n)
    else:
        with tarfile.open(archive, "w:gz" if archive.suffix in (".gz", ".tgz") else "w") as t:
            for n in names: t.add(folder/n, prefix + n)
    return archive

@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    "Small worlds on disk, by layout."
    root = tmp_path_factory.mktemp("drawn")
    for name in ("gta5", "kitti", "coco", "camvid32"):
        World("city", n=4, size=(32, 64)).export(name, root/name, split="all" if name == "camvid32" else "train", **({"package": 1} if name == "camvid32" else {}))
    return root


# ---- the command line

def test_a_script_a_dataset():
    assert set(SCRIPTS) == set(LAYOUTS)

@pytest.mark.parametrize("name", SCRIPTS)
def test_each_script_tells_how_and_checks(name, tmp_path, capsys):
    source = (REPO/"data_scripts"/f"{name}.py").read_text()
    assert source.startswith('"""') and f"python data_scripts/{name}.py --root data/{name}" in source
    seen = {}
    def spy(called, archives, **words): seen.update(words, called=called, archives=archives)
    exec(compile(source.replace("from common import Archive, main", "from common import Archive").replace("from common import main", ""), name, "exec"), {"__name__": "__main__", "main": spy})
    assert seen.pop("called") == name
    with pytest.raises(SystemExit) as e: common.main(name, seen.pop("archives"), **seen, argv=["--root", str(tmp_path/"nowhere")])
    said = capsys.readouterr().out
    assert e.value.code == 1 and LAYOUTS[name].address in said and LAYOUTS[name].licence in said and "access" in said and "no such folder" in said and str(tmp_path/"nowhere") in said
    assert not (tmp_path/"nowhere").exists() and "{" not in said.replace("{split}", "")

def test_from_a_shell(tmp_path, drawn):
    code, said = run("gta5", "--root", drawn/"gta5")
    assert code == 0 and "no problems" in said and "How to get" not in said
    code, said = run("cityscapes", "--root", tmp_path/"nowhere")
    assert code == 1 and "gtFine_trainvaltest.zip" in said and "no such folder" in said
    code, said = run("gta5", "--help")
    assert code == 0 and "--download" in said and "--archives" in said

def test_archives_by_hand_are_unpacked_once_and_checked(tmp_path, drawn, capsys):
    pack(drawn/"kitti", tmp_path/"got/data_semantics.zip")
    (tmp_path/"got/holiday.jpg").write_bytes(b"x")
    code, said = call("kitti", "--root", tmp_path/"kitti", "--archives", tmp_path/"got", capsys=capsys)
    assert code == 0 and "8 files unpacked" in said and "no problems" in said and "holiday.jpg: no archive of this dataset" in said
    ds = Folder("kitti", tmp_path/"kitti", "train")
    assert (ds.label(0) == Folder("kitti", drawn/"kitti", "train").label(0)).all()
    code, said = call("kitti", "--root", tmp_path/"kitti", "--archives", tmp_path/"got", capsys=capsys)
    assert code == 0 and "unpacked" not in said
    next((tmp_path/"kitti").rglob("*_10.png")).unlink()              # a file that was lost: pass the archive again
    (tmp_path/"kitti/.unpacked.json").unlink()
    assert call("kitti", "--root", tmp_path/"kitti", "--archives", tmp_path/"got", capsys=capsys)[0] == 0
    assert files(tmp_path/"kitti") == files(drawn/"kitti")

@pytest.mark.parametrize("name", [n for n in SCRIPTS if importlib.import_module(n).ARCHIVES])
def test_archives_of_every_dataset(name, tmp_path, capsys):
    "The world, packed as the script expects it: under the names, in the folders."
    archives, layout = importlib.import_module(name).ARCHIVES, LAYOUTS[name]
    drawn, there, package = tmp_path/"drawn", tmp_path/"root/archives", len(layout.packages) - 1 if name in ("camvid32", "apolloscape") else None
    split = "all" if package else next(s for s in layout.splits if s not in layout.unlabelled)
    World("city", n=4, size=(32, 64)).export(name, drawn, split=split, **({} if package is None else {"package": package}))
    archive = next((a for a in archives if split in a.name), archives[0])
    for a in archives:
        if a.into:                  # this folder has an archive of its own
            pack(drawn/a.into, there/a.name)
            shutil.rmtree(drawn/a.into)
    pack(drawn, there/archive.name.replace("*", "1"), archive.below and f"{archive.below}/")
    code, said = call(name, "--root", tmp_path/"root", capsys=capsys)      # ROOT/archives is looked into by itself
    assert code == 0 and ": 4 of" in said, said

def test_archives_within_archives(tmp_path, drawn, capsys):
    "COCO: a zip with a zip of label images beside the JSON files."
    coco = tmp_path/"coco"
    pack(drawn/"coco"/"train2017", tmp_path/"got/train2017.zip", "train2017/")
    World("city", n=4, size=(32, 64)).export("coco", tmp_path/"panoptic", kind=type(list(LAYOUTS["coco"].files.labels.values())[1]))
    pack(tmp_path/"panoptic/panoptic_train2017", tmp_path/"annotations/annotations/panoptic_train2017.zip", "panoptic_train2017/")
    (tmp_path/"annotations/annotations/panoptic_train2017.json").write_bytes((tmp_path/"panoptic/annotations/panoptic_train2017.json").read_bytes())
    pack(tmp_path/"annotations", tmp_path/"got/panoptic_annotations_trainval2017.zip")
    code, said = call("coco", "--root", coco, "--archives", tmp_path/"got", capsys=capsys)
    assert code == 0 and said.count("unpacked") == 3, said
    assert len(Folder("coco", coco, "train").label_files) == 4

def test_a_damaged_archive_is_an_error_and_leaves_nothing_half(tmp_path, drawn, capsys):
    whole = pack(drawn/"kitti", tmp_path/"got/data_semantics.zip").read_bytes()
    (tmp_path/"got/data_semantics.zip").write_bytes(PAGE)
    code, said = call("kitti", "--root", tmp_path/"kitti", "--archives", tmp_path/"got", capsys=capsys)
    assert code == 2 and "it is a web page, not an archive" in said
    flipped = bytearray(whole)
    flipped[200:230] = bytes(30)
    (tmp_path/"got/data_semantics.zip").write_bytes(flipped)
    code, said = call("kitti", "--root", tmp_path/"kitti", "--archives", tmp_path/"got", capsys=capsys)
    assert code == 2 and "damaged" in said and not [f for f in files(tmp_path/"kitti") if ".part" in f]
    (tmp_path/"got/data_semantics.zip").write_bytes(whole)
    assert call("kitti", "--root", tmp_path/"kitti", "--archives", tmp_path/"got", capsys=capsys)[0] == 0

@pytest.mark.parametrize("noted", ["", "[]", "7", '{"data_semantics.zip": 7}', '{"data_semantics.zip": null}'])
def test_a_damaged_note_of_what_is_unpacked_is_no_note(noted, tmp_path, drawn, capsys):
    pack(drawn/"kitti", tmp_path/"kitti/archives/data_semantics.zip")
    (tmp_path/"kitti/.unpacked.json").write_text(noted)
    code, said = call("kitti", "--root", tmp_path/"kitti", capsys=capsys)
    assert code == 0 and "8 files unpacked" in said
    assert list(json.loads((tmp_path/"kitti/.unpacked.json").read_text())) == ["data_semantics.zip"]

def test_data_that_were_deleted_are_had_again(tmp_path, drawn, capsys):
    kitti = tmp_path/"kitti"
    pack(drawn/"kitti", kitti/"archives/data_semantics.zip")
    code, said = call("kitti", "--root", kitti, capsys=capsys)
    assert code == 0 and "unpacked before" not in said
    shutil.rmtree(kitti/"training")
    code, said = call("kitti", "--root", kitti, capsys=capsys)
    assert code == 1 and f"{kitti/'.unpacked.json'} says that data_semantics.zip was unpacked before: if files were lost since, delete it and run the same command again" in said
    (kitti/".unpacked.json").unlink()
    assert call("kitti", "--root", kitti, capsys=capsys)[0] == 0

def test_a_number_of_threads_that_is_none(tmp_path, capsys):
    code, said = call("kitti", "--root", tmp_path, "--workers", "-1", capsys=capsys)
    assert code == 2 and "--workers -1: it must be 1 or more" in said

def test_a_folder_of_archives_that_is_not_there(tmp_path, drawn, capsys):
    for got in (tmp_path/"got", pack(drawn/"kitti", tmp_path/"data_semantics.zip")):       # an archive is no folder either
        code, said = call("kitti", "--root", tmp_path/"kitti", "--archives", got, capsys=capsys)
        assert code == 2 and f"no such folder: {got}" in said and not (tmp_path/"kitti").exists()

def test_home_in_paths(tmp_path, drawn, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    pack(drawn/"kitti", tmp_path/"got/data_semantics.zip")
    code, said = call("kitti", "--root=~/kitti", "--archives=~/got", capsys=capsys)
    assert code == 0 and "no problems" in said and len(check("kitti", tmp_path/"kitti").clean) == 4


# ---- hostile archives

def zipped(path, entries, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w") as z:
        for name, data, *mode in entries:
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            info.external_attr = (mode[0] if mode else stat.S_IFREG | 0o644) << 16
            z.writestr(info, data)
    return path

def tarred(path, entries):
    with tarfile.open(path, f"w:{path.suffix[1:].replace('tgz', 'gz')}") as t:
        for name, data, *kind in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data) if not kind else 0
            if kind: info.type, info.linkname = kind[0], kind[1] if len(kind) > 1 else ""
            t.addfile(info, io.BytesIO(data) if not kind else None)
    return path

GOOD = ("images/1.png", b"fine")
HOSTILE = {
    "climbs": lambda d: [zipped(d/"a.zip", [GOOD, ("../outside.txt", b"x")]), tarred(d/"a.tgz", [GOOD, ("../outside.txt", b"x")])],
    "climbs later": lambda d: [zipped(d/"a.zip", [GOOD, ("images/../../outside.txt", b"x")]), tarred(d/"a.tgz", [GOOD, ("images/../../outside.txt", b"x")])],
    "absolute": lambda d: [zipped(d/"a.zip", [GOOD, (f"{d}/outside.txt", b"x")]), tarred(d/"a.tgz", [GOOD, (f"{d}/outside.txt", b"x")])],
    "backslash": lambda d: [tarred(d/"a.tgz", [GOOD, ("..\\outside.txt", b"x")])],
    "drive": lambda d: [zipped(d/"a.zip", [GOOD, ("C:/outside.txt", b"x")])],
    "link out": lambda d: [zipped(d/"a.zip", [GOOD, ("images/l", b"../../", stat.S_IFLNK | 0o777)]), tarred(d/"a.tgz", [GOOD, ("images/l", b"", tarfile.SYMTYPE, "../../")])],
    "hard link": lambda d: [tarred(d/"a.tgz", [GOOD, ("images/l", b"", tarfile.LNKTYPE, "../../etc/passwd")])],
    "device": lambda d: [tarred(d/"a.tgz", [GOOD, ("images/zero", b"", tarfile.CHRTYPE)]), tarred(d/"b.tgz", [GOOD, ("images/pipe", b"", tarfile.FIFOTYPE)])],
    "twice": lambda d: [tarred(d/"a.tgz", [GOOD, GOOD])],
    "file and folder": lambda d: [zipped(d/"a.zip", [GOOD, ("a", b"x"), ("a/b", b"x")]), tarred(d/"a.tgz", [GOOD, ("a/b", b"x"), ("a", b"x")])],
    "folder climbs": lambda d: [tarred(d/"a.tgz", [GOOD, ("../evil", b"", tarfile.DIRTYPE)])]}

@pytest.mark.parametrize("how", HOSTILE)
def test_hostile_archives_are_refused_whole(how, tmp_path):
    "Every entry is looked at before the first is written: nothing is left, inside the root or outside."
    for archive in HOSTILE[how](tmp_path):
        before = files(tmp_path)
        with pytest.raises(Refused, match=archive.name): unpack(archive, tmp_path/"root")
        assert files(tmp_path) == before and not files(tmp_path/"root")

def test_bombs_are_refused(tmp_path):
    bomb = zipped(tmp_path/"a.zip", [GOOD, ("images/zeros", bytes(30 << 20))])
    assert bomb.stat().st_size < 1 << 16
    with pytest.raises(Refused, match="unpacks to more than 1000000 bytes"): unpack(bomb, tmp_path/"root", most=10**6)
    huge = tarred(tmp_path/"b.tgz", [GOOD])
    with tarfile.open(huge, "w:gz") as t:
        t.addfile(tarfile.TarInfo("a"), None)
        info = tarfile.TarInfo("images/zeros")
        info.size = 5 << 30                      # announced; nobody writes five gigabytes for this test
        t.fileobj.write(info.tobuf())
    with pytest.raises(Refused, match="200 times its size"): unpack(huge, tmp_path/"root", most=1 << 40)
    assert not files(tmp_path/"root")

@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_names_that_would_fill_the_memory_are_refused(kind, tmp_path):
    "Compressed, gigabytes of zeros are a few megabytes; they are announced, and must not be waited for."
    header = tarfile.TarInfo("name")
    header.type, header.size = kind, 2 << 30
    with tarfile.open(tmp_path/"a.tgz", "w:gz") as t:
        t.addfile(tarfile.TarInfo("images/1.png"))
        t.fileobj.write(header.tobuf(tarfile.GNU_FORMAT))
    with pytest.raises(Refused, match="a.tgz: a name in it takes 2147483648 bytes"): unpack(tmp_path/"a.tgz", tmp_path/"root")
    assert not files(tmp_path/"root")

def test_overlapping_entries_are_refused(tmp_path):
    "Many names for one piece of data: what the flat zip bombs do."
    z = zipped(tmp_path/"a.zip", [("a", os.urandom(5000))])
    with zipfile.ZipFile(z, "a") as f:
        for k in range(20):
            again = zipfile.ZipInfo(f"b{k}")
            first = f.infolist()[0]
            for field in ("compress_type", "flag_bits", "CRC", "compress_size", "file_size", "header_offset", "external_attr"): setattr(again, field, getattr(first, field))
            f.filelist.append(again)
            f.NameToInfo[again.filename] = again
        f._didModify = True
    with pytest.raises(Refused): unpack(z, tmp_path/"root")
    assert not files(tmp_path/"root")

def test_an_entry_that_is_larger_than_it_says(tmp_path):
    z = zipped(tmp_path/"a.zip", [("a.bin", bytes(5000))])
    data = bytearray(z.read_bytes())
    for at in (data.index(b"PK\x03\x04") + 22, data.index(b"PK\x01\x02") + 24): data[at:at + 4] = (10).to_bytes(4, "little")
    z.write_bytes(data)
    with pytest.raises(Refused): unpack(z, tmp_path/"root")
    assert not files(tmp_path/"root")

def test_links_that_are_in_the_root_already_are_not_followed(tmp_path):
    (tmp_path/"elsewhere").mkdir()
    (tmp_path/"root").mkdir()
    (tmp_path/"root/images").symlink_to(tmp_path/"elsewhere")
    with pytest.raises(Refused, match="goes through a link"): unpack(zipped(tmp_path/"a.zip", [GOOD]), tmp_path/"root")
    assert not files(tmp_path/"elsewhere")
    (tmp_path/"root/images").unlink()
    (tmp_path/"root/images").mkdir()
    (tmp_path/"elsewhere/1.png").write_bytes(b"precious")
    (tmp_path/"root/images/1.png").symlink_to(tmp_path/"elsewhere/1.png")
    unpack(tmp_path/"a.zip", tmp_path/"root")
    assert (tmp_path/"elsewhere/1.png").read_bytes() == b"precious" and (tmp_path/"root/images/1.png").read_bytes() == b"fine"

def test_encrypted_and_damaged(tmp_path):
    z = zipped(tmp_path/"a.zip", [GOOD])
    data = bytearray(z.read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)): data[data.index(mark) + at] |= 1
    z.write_bytes(data)
    with pytest.raises(Refused, match="is encrypted"): unpack(z, tmp_path/"root")
    t = tarred(tmp_path/"b.tgz", [("a", os.urandom(200_000)), ("b", os.urandom(200_000))])
    t.write_bytes(t.read_bytes()[:-100_000])
    with pytest.raises(Refused, match="damaged"): unpack(t, tmp_path/"root")
    assert not files(tmp_path/"root")
    for content in (b"", b"Rar!\x1a\x07", os.urandom(3000), PAGE):
        (tmp_path/"c.zip").write_bytes(content)
        with pytest.raises(Refused, match="c.zip"): unpack(tmp_path/"c.zip", tmp_path/"root")

NOISE = [GOOD, ("images/2.png", random.Random(0).randbytes(1_000_000))]     # more than a block of bzip2
DAMAGED = {
    "gz, late in the entry": lambda d: (tarred(d/"a.tgz", NOISE), -5000),
    "gz, its checksum": lambda d: (tarred(d/"a.tgz", NOISE), -8),
    "tar, the head of an entry": lambda d: (tarred(d/"a.tar", NOISE), 512 + -(-len(GOOD[1]) // 512) * 512),
    "bz2": lambda d: (tarred(d/"a.tar.bz2", NOISE), -5000),
    "xz": lambda d: (tarred(d/"a.tar.xz", NOISE), -5000),
    "zip, packed by lzma": lambda d: (zipped(d/"a.zip", NOISE[1:], zipfile.ZIP_LZMA), 50)}

@pytest.mark.parametrize("how", DAMAGED)
def test_damage_within_an_archive_is_seen_and_leaves_nothing(how, tmp_path):
    "Sixteen bytes that fell over on the way; and the whole archive that is fetched then."
    (tmp_path/"got").mkdir()
    archive, at = DAMAGED[how](tmp_path/"got")
    archives, root, whole = [Archive(archive.name)], tmp_path/"root", archive.read_bytes()
    at %= len(whole)
    archive.write_bytes(whole[:at] + bytes(b ^ 255 for b in whole[at:at + 16]) + whole[at + 16:])
    with pytest.raises(Refused, match=f"{archive.name}: it is damaged .* Delete it and fetch it again"): common.unpack_all(archives, archive.parent, root)
    assert not files(root) and not (root/".unpacked.json").exists()
    archive.write_bytes(whole)
    assert common.unpack_all(archives, archive.parent, root) == [] and (root/"images/2.png").read_bytes() == NOISE[1][1]
    assert common.unpack_all(archives, archive.parent, root) == [archive.name]

@pytest.mark.parametrize("at", [0, 1])
def test_a_map_of_holes_that_makes_no_sense(at, tmp_path):
    with tarfile.open(tmp_path/"a.tgz", "w:gz") as t:
        for k in range(2):
            info = tarfile.TarInfo(f"images/{k}.png")
            if k == at: info.pax_headers = {"GNU.sparse.map": "nonsense"}
            t.addfile(info)
    with pytest.raises(Refused, match="a.tgz: it is .* Delete it and fetch it again"): unpack(tmp_path/"a.tgz", tmp_path/"root")
    assert not files(tmp_path/"root")

def test_what_follows_an_archive_without_end_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "PIECE", 1 << 12)         # a gigabyte of pieces is four megabytes then
    with gzip.open(tarred(tmp_path/"a.tgz", [GOOD]), "ab") as f: f.write(bytes(5 << 20))
    with pytest.raises(Refused, match="a.tgz: it is damaged .*follows its last entry"): unpack(tmp_path/"a.tgz", tmp_path/"root")
    assert not files(tmp_path/"root")

def test_a_killed_unpacking_goes_on(tmp_path, monkeypatch):
    z = zipped(tmp_path/"a.zip", [(f"images/{k}.bin", os.urandom(1000)) for k in range(6)])
    real, done = common.os.replace, []
    def dies(a, b):
        if len(done) == 3: raise KeyboardInterrupt
        done.append(b)
        real(a, b)
    monkeypatch.setattr(common.os, "replace", dies)
    with pytest.raises(KeyboardInterrupt): unpack(z, tmp_path/"root")
    monkeypatch.setattr(common.os, "replace", real)
    assert files(tmp_path/"root") == ["images/0.bin", "images/1.bin", "images/2.bin"]
    times = {f: (tmp_path/"root"/f).stat().st_mtime_ns for f in files(tmp_path/"root")}
    assert unpack(z, tmp_path/"root") == 6 and len(files(tmp_path/"root")) == 6
    assert all((tmp_path/"root"/f).stat().st_mtime_ns == t for f, t in times.items())


# ---- downloads

class Server(ThreadingHTTPServer):
    "Serves `data` at every path; `moods` says how each request in turn is answered, the last for ever."
    def __init__(self, data, moods):
        super().__init__(("127.0.0.1", 0), Answer)
        self.data, self.moods, self.asked, self.tag = data, list(moods), [], '"one"'
        threading.Thread(target=self.serve_forever, daemon=True).start()
    @property
    def url(self): return f"http://127.0.0.1:{self.server_address[1]}/a.zip"

class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
    def do_GET(self):
        s, mood = self.server, self.server.moods.pop(0) if len(self.server.moods) > 1 else self.server.moods[0]
        span = self.headers.get("Range")
        s.asked.append(span)
        if mood == "login": return self.send(200, PAGE, {"Content-Type": "text/html; charset=utf-8"})
        if mood == "login as zip": return self.send(200, PAGE, {"Content-Type": "application/zip"})
        if mood in ("403", "404", "503"): return self.send(int(mood), b"no", {})
        if mood == "gibberish":
            self.wfile.write(b"what?\r\n\r\n")
            self.close_connection = True
            return
        start = int(span[6:-1]) if span and mood != "no ranges" and self.headers.get("If-Range") == s.tag else 0
        if start >= len(s.data): return self.send(416, b"", {})
        head = {"Content-Type": "application/zip", "ETag": s.tag}
        if start: head["Content-Range"] = f"bytes {start + (1 if mood == 'elsewhere' else 0)}-{len(s.data) - 1}/{len(s.data)}"
        body = s.data[start:]
        if mood == "breaks off": return self.send(200, b"%x\r\n" % len(body) + body[:len(body) // 2], head | {"Transfer-Encoding": "chunked"}, None)
        sent = {"drops": body[:max(1, len(body) // 2)], "cut": body[:-50]}.get(mood, body)
        self.send(206 if start else 200, sent, head, len(body) if mood != "cut" else None)
    def send(self, status, body, head, length=...):
        self.send_response(status)
        for k, v in head.items(): self.send_header(k, v)
        length = len(body) if length is ... else length
        if length is not None: self.send_header("Content-Length", str(length))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

@pytest.fixture
def serve(tmp_path):
    data, servers = zipped(tmp_path/"origin.zip", [(f"images/{k}.bin", os.urandom(20_000)) for k in range(5)]).read_bytes(), []
    def start(*moods, content=data):
        servers.append(Server(content, moods))
        return servers[-1]
    yield start
    for s in servers: s.shutdown(); s.server_close()

def get(server, file, **kw): return fetch(server.url, file, wait=0, timeout=5, say=lambda *_: None, **kw)

def test_a_good_server(serve, tmp_path):
    s = serve("good")
    get(s, tmp_path/"d/a.zip")
    assert (tmp_path/"d/a.zip").read_bytes() == s.data and [f.name for f in (tmp_path/"d").iterdir()] == ["a.zip"]
    get(s, tmp_path/"d/a.zip")
    assert len(s.asked) == 1             # what is there is not fetched again

def test_a_server_that_drops_is_asked_for_the_rest(serve, tmp_path):
    s = serve("drops", "drops", "503", "good")
    get(s, tmp_path/"a.zip")
    n = len(s.data)
    assert (tmp_path/"a.zip").read_bytes() == s.data and s.asked == [None, f"bytes={n // 2}-", f"bytes={n // 2 + (n - n // 2) // 2}-", f"bytes={n // 2 + (n - n // 2) // 2}-"]

def test_an_interrupted_download_goes_on_in_the_next_run(serve, tmp_path):
    s = serve("drops", "503")
    with pytest.raises(Refused, match="503.*bytes are kept in .*run the same command again"): get(s, tmp_path/"a.zip", tries=2)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a.zip.part", "a.zip.part.json", "origin.zip"]
    s.moods = ["good"]
    get(s, tmp_path/"a.zip")
    assert (tmp_path/"a.zip").read_bytes() == s.data and s.asked[-1] == f"bytes={len(s.data) // 2}-"

@pytest.mark.parametrize("noted", ["", "[]"])
def test_a_note_that_cannot_be_read_is_no_note(noted, serve, tmp_path):
    s = serve("drops", "503")
    with pytest.raises(Refused): get(s, tmp_path/"a.zip", tries=2)
    (tmp_path/"a.zip.part.json").write_text(noted)
    s.moods = ["good"]
    get(s, tmp_path/"a.zip")
    assert (tmp_path/"a.zip").read_bytes() == s.data and s.asked[-1] is None        # begun again: nothing says of which file the first half is

def received(server, name, tmp_path):
    "As a process leaves it that is killed between the last byte and the name."
    common._receive(server.url, tmp_path/f"{name}.part", tmp_path/f"{name}.part.json", 5, print)

def test_what_is_complete_but_has_no_name_yet_is_not_fetched_again(serve, tmp_path):
    s = serve("good")
    received(s, "a.zip", tmp_path)
    with pytest.raises(Refused, match="its SHA-256 is"): get(s, tmp_path/"a.zip", sha256="00ff")
    assert len(s.asked) == 1 and [f.name for f in tmp_path.iterdir()] == ["origin.zip"]
    received(s, "a.zip", tmp_path)
    get(s, tmp_path/"a.zip")
    assert len(s.asked) == 2 and (tmp_path/"a.zip").read_bytes() == s.data and not (tmp_path/"a.zip.part.json").exists()

def test_a_part_of_an_archive_that_is_complete_is_not_fetched_again(serve, tmp_path, monkeypatch):
    s = serve("good")
    def dies(*_): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(common.os, "replace", lambda a, b, real=os.replace: real(a, b) if b.suffix == ".json" else dies())
        with pytest.raises(KeyboardInterrupt): common.fetch_parts([s.url], tmp_path/"a.zip")
    common.fetch_parts([s.url], tmp_path/"a.zip")
    assert len(s.asked) == 1 and (tmp_path/"a.zip").read_bytes() == s.data

def test_two_do_not_download_to_one_folder(serve, tmp_path, drawn, capsys):
    s, got = serve("good", content=pack(drawn/"kitti", tmp_path/"x.zip").read_bytes()), tmp_path/"kitti/archives"
    holds = f"import sys; sys.path[:0] = {sys.path!r}; import common, pathlib; lock = common._alone(pathlib.Path(sys.argv[1])); lock.__enter__(); print(flush=True); sys.stdin.read()"
    def download():
        with pytest.raises(SystemExit) as e: common.main("kitti", [Archive("data_semantics.zip", s.url)], access="free", argv=["--root", str(tmp_path/"kitti"), "--download"])
        return e.value.code, "".join(capsys.readouterr())
    with subprocess.Popen([sys.executable, "-c", holds, got], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        try:
            other.stdout.readline()
            code, said = download()
            assert code == 2 and f"{got}: process {other.pid} on " in said and "is downloading to it. Wait until it is done" in said and not s.asked
        finally: other.kill()
    code, said = download()                    # the lock of one that was killed is gone with it
    assert code == 0 and "no problems" in said and ".lock" not in said

def test_an_archive_in_parts(tmp_path):
    whole = tarred(tmp_path/"origin.tgz", [("a", os.urandom(50_000)), ("b", os.urandom(50_000))]).read_bytes()
    servers = [Server(whole[:40_000], ["good"]), Server(whole[40_000:70_000], ["drops", "503"]), Server(whole[70_000:], ["good"])]
    urls, quiet = [s.url for s in servers], dict(wait=0, timeout=5, say=lambda *_: None)
    with pytest.raises(Refused, match="run the same command again"): common.fetch_parts(urls, tmp_path/"d/a.tgz", tries=2, **quiet)
    assert not (tmp_path/"d/a.tgz").exists()
    servers[1].moods = ["good"]
    common.fetch_parts(urls, tmp_path/"d/a.tgz", **quiet)
    assert (tmp_path/"d/a.tgz").read_bytes() == whole and [f.name for f in (tmp_path/"d").iterdir()] == ["a.tgz"]
    assert [len(s.asked) for s in servers] == [1, 3, 1] and servers[1].asked[-1] == "bytes=15000-"
    common.fetch_parts([servers[0].url], tmp_path/"d/a.tgz", **quiet)              # what is there is not fetched again
    with pytest.raises(Refused, match="cut off"): common.fetch_parts(urls[:2], tmp_path/"d/b.tgz", **quiet)
    assert [f.name for f in (tmp_path/"d").iterdir()] == ["a.tgz"]
    for s in servers: s.shutdown(); s.server_close()

def test_a_file_that_changed_meanwhile_is_begun_again(serve, tmp_path):
    s = serve("drops", "503")
    with pytest.raises(Refused): get(s, tmp_path/"a.zip", tries=2)
    s.data, s.tag, s.moods = zipped(tmp_path/"other.zip", [("x", os.urandom(30_000))]).read_bytes(), '"two"', ["good"]
    get(s, tmp_path/"a.zip")
    assert (tmp_path/"a.zip").read_bytes() == s.data

@pytest.mark.parametrize("moods", [("drops", "no ranges"), ("drops", "elsewhere", "good"), ("breaks off", "good"), ("gibberish", "good")])
def test_servers_that_do_not_go_on_where_they_should(moods, serve, tmp_path):
    s = serve(*moods)
    get(s, tmp_path/"a.zip")
    assert (tmp_path/"a.zip").read_bytes() == s.data

@pytest.mark.parametrize("mood, message", [("login", "web page instead of the file: it wants a login"), ("login as zip", "it is a web page, not an archive"), ("404", "404"), ("403", "403"),
                                           ("cut", "neither a zip nor a tar archive, or it is cut off")])
def test_no_archive_comes(mood, message, serve, tmp_path):
    s = serve(mood)
    with pytest.raises(Refused, match=message): get(s, tmp_path/"d/a.zip")
    assert not (tmp_path/"d/a.zip").exists() and len(s.asked) == 1
    s.moods = ["good"]
    get(s, tmp_path/"d/a.zip")
    assert (tmp_path/"d/a.zip").read_bytes() == s.data

def test_a_tar_of_unknown_length_is_read_to_its_end(serve, tmp_path):
    t = tarred(tmp_path/"origin.tgz", [("a", os.urandom(50_000)), ("b", os.urandom(50_000))]).read_bytes()
    s = serve("cut", content=t)
    with pytest.raises(Refused, match="cut off"): get(s, tmp_path/"a.tgz")
    assert not (tmp_path/"a.tgz").exists()
    (tmp_path/"b.tgz").write_bytes(t[:-4])               # all entries are there, the checksum is not
    with pytest.raises(Refused, match="b.tgz: it is cut off"): common.check_archive(tmp_path/"b.tgz", to_the_end=True)

def test_digests(serve, tmp_path):
    import hashlib
    s = serve("good")
    with pytest.raises(Refused, match="its SHA-256 is .* must be 00ff"): get(s, tmp_path/"a.zip", sha256="00ff")
    assert not (tmp_path/"a.zip").exists() and not (tmp_path/"a.zip.part").exists()
    get(s, tmp_path/"a.zip", sha256=hashlib.sha256(s.data).hexdigest())
    with pytest.raises(Refused, match="Delete it and fetch it again"): get(s, tmp_path/"a.zip", sha256="00ff")      # one that lay there

def test_download_unpack_check(serve, tmp_path, drawn, capsys, monkeypatch):
    s = serve("drops", "good", content=pack(drawn/"camvid32", tmp_path/"x.zip").read_bytes())
    monkeypatch.setattr(common.time, "sleep", lambda _: None)
    archives = [Archive("all.zip", s.url)]
    with pytest.raises(SystemExit) as e: common.main("camvid32", archives, access="free", argv=["--root", str(tmp_path/"c"), "--download"])
    said = capsys.readouterr().out
    assert e.value.code == 0 and "trying again" in said and "no problems" in said and check("camvid32", tmp_path/"c").frames == {"all": 4}
    with pytest.raises(SystemExit) as e: common.main("camvid32", archives, access="free", argv=["--root", str(tmp_path/"c"), "--download"])
    assert e.value.code == 0 and len(s.asked) == 2
