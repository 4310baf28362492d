#!/usr/bin/env python3
"""Inserts what tolerance.h and pace.h define into a copy of packetdrill's sources.

    prepare.py FOLDER

FOLDER has run_packet.c and the rest. The places are found by the names of functions; a name that is not there, or there twice, is an
error that names it. No line of packetdrill's is needed to find them.
"""

import pathlib
import re
import shutil
import sys

FOLDER = pathlib.Path(sys.argv[1])
OWN = pathlib.Path(__file__).parent


class Source:
    """A file of the copy."""

    def __init__(self, name):
        self.path = FOLDER / name
        self.text = self.path.read_text()

    def includes(self, name):
        """Includes a file of ours behind the last header of packetdrill's own."""
        shutil.copy(OWN / name, FOLDER)
        last = list(re.finditer(r'^#include "[^"]*"\n', self.text, re.M))
        if not last:
            sys.exit(f"{self.path}: no header is included")
        self._insert(last[-1].end(), f'#include "{name}"\n')

    def begins(self, function, line):
        """Has a function begin with a line."""
        self._insert(self._definition(function).end(), f"\t{line}\n")

    def before(self, function, line):
        """Puts a line before a function."""
        self._insert(self._definition(function).start(), f"{line}\n")

    def within(self, function, pattern, replacement):
        """Replaces the one place inside a function that matches."""
        start = self._definition(function).end()
        end = self.text.index("\n}\n", start)
        body, times = re.subn(pattern, replacement, self.text[start:end])
        if times != 1:
            sys.exit(f"{self.path}: {function}() has {pattern} {times} times, not once")
        self.text = self.text[:start] + body + self.text[end:]

    def save(self):
        self.path.write_text(self.text)

    def _insert(self, at, text):
        self.text = self.text[:at] + text + self.text[at:]

    def _definition(self, function):
        found = list(re.finditer(rf"^[a-z][^;{{}}()]*\b{function}\([^;{{}}]*\)[^;{{}}]*\n\{{\n", self.text, re.M))
        if len(found) != 1:
            sys.exit(f"{self.path}: {len(found)} definitions of {function}(), not one")
        return found[0]


packet = Source("run_packet.c")
packet.includes("tolerance.h")
packet.begins("check_field", "if (forgives_field(name, expected, actual)) return STATUS_OK;")
packet.begins("verify_outbound_live_packet", "judge(live_packet, script_packet);")
packet.begins(
    "verify_outbound_live_tcp_options",
    "if (forgives_options(state, actual_packet, script_packet, error)) return STATUS_OK;",
)
# What is skipped is no packet of a socket, nor of a connect().
packet.before("sniff_outbound_live_packet", "static bool skipped;")
for asked, instead in [
    ("find_socket_for_live_packet", "find_socket_or_skip(state, *packet, &direction, &skipped)"),
    ("find_connect_for_live_packet", "skipped ? NULL : find_connect_for_live_packet(state, *packet, &direction)"),
]:
    packet.within("sniff_outbound_live_packet", rf"(?<=\s){asked}\([^;]*\)(?=;)", instead)
packet.save()

run = Source("run.c")
run.includes("pace.h")
run.begins("set_scheduling_priority", "return;  /* No priority above that of the box. */")
run.begins("schedule_start_time_usecs", "sleep_till_tick();\n\treturn now_usecs(state);")
run.save()

calls = Source("run_system_call.c")
calls.includes("pace.h")
calls.within("syscall_accept", r"\tbegin_syscall\(", "\tif (!syscall->error) await_connection(live_fd);\n\\g<0>")
calls.save()

server = Source("wire_server.c")
server.includes("pace.h")
server.begins("wire_server_send_packets_done", "let_packets_arrive();")
server.within("wire_server_thread", r"\bstate_free\(", "await_end(wire_server->wire_conn->fd), \\g<0>")
server.save()
