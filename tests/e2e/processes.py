"""Processes of a child, read from /proc: who descends from it, and who of them is still there."""

from pathlib import Path


def read_stat(pid: int) -> tuple[int, str, int] | None:
    """Return (parent, state, start time) of a process; None when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()
    return int(fields[1]), fields[0], int(fields[19])


def family_of(root: int) -> dict[int, int]:
    """Return the start times of a process and of all its descendants."""
    found = {int(path.name): read_stat(int(path.name)) for path in Path("/proc").iterdir() if path.name.isdigit()}
    members = {root}
    while grown := {pid for pid, stat in found.items() if stat and stat[0] in members} - members:
        members |= grown
    return {pid: stat[2] for pid in members if (stat := found.get(pid))}


def alive(family: dict[int, int]) -> dict[int, str]:
    """Return the command lines of those that still run; a pid that was given to another process does not count."""
    left = {}
    for pid, start in family.items():
        stat = read_stat(pid)
        if stat is not None and stat[2] == start and stat[1] not in "ZX":
            left[pid] = read_command_line(pid)
    return left


def read_command_line(pid: int) -> str:
    """Return the start of what a process shows as its command; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:120]
    except (FileNotFoundError, ProcessLookupError):
        return ""
