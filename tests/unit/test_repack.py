"""A repacked archive holds the owner's files and the hook; a bad one is refused in a sentence."""

import io
import subprocess
import sys
import tarfile

import pytest

import package
from repack import repack


def archive(path, *names, mode="w:gz"):
    with tarfile.open(path, mode) as packed:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = 3, 0o640
            packed.addfile(entry, io.BytesIO(b"own"))
    return path


def test_the_owners_files_stay_as_they_are(tmp_path):
    owned = archive(tmp_path / "model.tar.gz", "./model.pth", "code/inference.py", "code/sitecustomize.py")
    with tarfile.open(owned) as given:
        before = {member.name: given.extractfile(member).read() for member in given}
    repack(owned, tmp_path / "hooked.tar.gz")
    with tarfile.open(tmp_path / "hooked.tar.gz") as packed:
        members = {member.name: member for member in packed}
        assert {name: packed.extractfile(name).read() for name in before} == before
        assert members["code/inference.py"].mode == 0o640
        hook = members.keys() - before.keys()
    assert "code/glassbox_program.py" in hook
    assert f"code/glassbox_program_files/glassbox_hook/{package.CAPTURE[0]}" in hook
    assert all(name.startswith("code/glassbox_program") for name in hook)


def test_the_same_archive_gives_the_same_bytes(tmp_path):
    owned = archive(tmp_path / "model.tar.gz", "model.pth")
    for name in ("one", "two"):
        repack(owned, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_links_are_kept(tmp_path):
    with tarfile.open(tmp_path / "model.tar.gz", "w:gz") as packed:
        link = tarfile.TarInfo("latest.pth")
        link.type, link.linkname = tarfile.SYMTYPE, "model.pth"
        packed.addfile(link)
    repack(tmp_path / "model.tar.gz", tmp_path / "hooked.tar.gz")
    with tarfile.open(tmp_path / "hooked.tar.gz") as packed:
        assert packed.getmember("latest.pth").linkname == "model.pth"


@pytest.mark.parametrize("name", ["code/glassbox_program.py", "./code/recorder.py"])
def test_an_archive_with_the_hook_is_refused(tmp_path, name):
    owned = archive(tmp_path / "model.tar.gz", name)
    with pytest.raises(ValueError, match="expected an archive without the hook, got"):
        repack(owned, tmp_path / "hooked.tar.gz")


def run(*arguments):
    return subprocess.run(
        [sys.executable, package.HERE / "repack.py", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PYTHONPATH": str(package.CORE.parent)},
    )


def test_the_command_leaves_no_part_of_a_bad_archive(tmp_path):
    whole = archive(tmp_path / "model.tar.gz", "model.pth").read_bytes()
    (tmp_path / "half.tar.gz").write_bytes(whole[: len(whole) // 2])
    for name in ("half.tar.gz", "absent.tar.gz"):
        done = run(tmp_path / name, "--out", tmp_path / "hooked.tar.gz")
        assert done.returncode == 1
        assert done.stderr.startswith("repack: ")
        assert name in done.stderr
        assert done.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half.tar.gz", "model.tar.gz"]


def test_the_command_prints_the_size(tmp_path):
    out = tmp_path / "hooked.tar.gz"
    done = run(archive(tmp_path / "model.tar.gz", "model.pth"), "--out", out)
    assert (done.returncode, done.stdout) == (0, f"{out}: {out.stat().st_size:,} bytes\n")
