"""The helper that root installs: it trims what its own configuration lists, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.small_disk import as_root, disk_image

HELPER = REPOSITORY / "systemd" / "cosma-fstrim"
# In a mount namespace of its own there is an /etc to write to.
SETTING = """\
set -e
mount -t tmpfs -o mode=755 none /etc
mkdir -m 755 /etc/cosma
install -m "$MODE" /dev/stdin /etc/cosma/fstrim.conf
[ -z "$THEN" ] || eval "$THEN"
exec "$HELPER" "$@"
"""


@dataclass(frozen=True, slots=True)
class Helper:
    mount: Path

    def run(
        self, *arguments: str, listed: str | None = None, mode: str = "644", then: str = ""
    ) -> tuple[int, str]:
        """(exit code, what it said). `then`: what else happens to its configuration before."""
        text = f"# disks\n\n{self.mount}\n" if listed is None else listed
        done = subprocess.run(
            as_root(
                "env", f"MODE={mode}", f"THEN={then}", f"HELPER={HELPER}",
                "unshare", "--mount", "sh", "-c", SETTING, "sh", *arguments,
            ),
            input=text, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def helper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Helper]:
    base = tmp_path_factory.mktemp("helper")
    with disk_image(base / "disk.img", base / "a disk", 32) as image:
        yield Helper(image.place)


def test_what_is_listed_is_trimmed(helper: Helper) -> None:
    code, said = helper.run(str(helper.mount))
    assert code == 0 and "bytes) trimmed" in said, said
    assert helper.run(str(helper.mount), listed=f"/elsewhere\n{helper.mount}")[0] == 0


@pytest.mark.parametrize(
    "argument", ["/", "", "{mount}/", "{mount}/../{name}", "{mount}/lost+found", "-v", "--all"]
)
def test_what_is_not_listed_word_for_word_is_refused(helper: Helper, argument: str) -> None:
    wanted = argument.format(mount=helper.mount, name=helper.mount.name)
    code, said = helper.run(wanted)
    assert code == 3 and "is not listed" in said, said


def test_it_takes_one_argument(helper: Helper) -> None:
    for arguments in ((), (str(helper.mount), "--all")):
        code, said = helper.run(*arguments)
        assert code == 3 and "expected one mount point" in said, said


def test_a_directory_that_is_no_mount_point_is_refused(helper: Helper, tmp_path: Path) -> None:
    code, said = helper.run(str(tmp_path), listed=f"{tmp_path}\n")
    assert code == 3 and "is no mount point" in said, said


@pytest.mark.parametrize(
    ("mode", "then", "said"),
    [
        ("664", "", "must belong to root"),
        ("646", "", "must belong to root"),
        ("644", "chown 1 /etc/cosma/fstrim.conf", "must belong to root"),
        ("644", "chmod 777 /etc/cosma", "/etc/cosma must belong to root"),
        ("644", "rm /etc/cosma/fstrim.conf", "there is no /etc/cosma/fstrim.conf"),
        (
            "644",
            "mv /etc/cosma/fstrim.conf /etc/x; ln -s /etc/x /etc/cosma/fstrim.conf",
            "there is no",
        ),
    ],
)
def test_a_configuration_that_others_could_write_is_not_believed(
    helper: Helper, mode: str, then: str, said: str
) -> None:
    code, told = helper.run(str(helper.mount), mode=mode, then=then)
    assert code == 3 and said in told, told


def test_the_sudoers_line_is_one() -> None:
    line = (REPOSITORY / "systemd" / "cosma-fstrim.sudoers").read_text().splitlines()[-1]
    assert line == "survey ALL=(root) NOPASSWD: /usr/local/sbin/cosma-fstrim /*"
    visudo = shutil.which("visudo", path="/usr/sbin:/sbin:/usr/bin")
    if visudo is not None:
        file = REPOSITORY / "systemd" / "cosma-fstrim.sudoers"
        done = subprocess.run([visudo, "-cf", str(file)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
