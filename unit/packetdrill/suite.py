#!/usr/bin/env python3
"""packetdrill's suite through the proxy, beside a bridge.

    suite.py [--jobs N] [--setups AC] [--modes early] [--tries N] [--trace FOLDER] PACKETDRILL SCRIPTS PROGRAMS [TEXT...]

PACKETDRILL is the program as prepare.py has changed it, SCRIPTS the folder of its scripts, PROGRAMS that of synproxy; with TEXT only
scripts are run whose name contains one of them. packetdrill runs in wire mode:

    kernel under test                  the middle                    the script's own end
    tun0 192.168.0.1 ───────── [ bridge or synproxy ] ───────── wire0 192.168.0.2, sends as 192.0.2.1
    ctl0 10.99.0.1  ────────────────────────────────────────── ctl0 10.99.0.2, by which both processes speak

The kernel is on the LAN or on the WAN, and a script listens (the kernel is the server) or connects:

    A  LAN, listens   the kernel is the server behind the proxy
    B  LAN, connects  connections from inside, which pass through
    C  WAN, connects  the kernel is the client; a script is the server behind the proxy
    D  WAN, listens   connections from inside, which pass through, to the kernel

Every script runs over the bridge first, where nothing is tolerated: one that does not pass there says nothing, and does not count.
Through the proxy it has to pass too, but for the differences that differences.txt names. A difference without a name fails the suite,
and so does a name of which nothing is seen. What fails without a name is tried again alone, in turns with the bridge. Each script has a server port of its own, and runs once before it counts, since the first
connection to a server is answered with presumed options.
"""

import argparse
import collections
import fnmatch
import os
import pathlib
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

SETUPS = {"A": ("lan", "listens"), "B": ("lan", "connects"), "C": ("wan", "connects"), "D": ("wan", "listens")}
MODES = ["honest", "early"]
# Nothing that is remembered of one run, or forgiven in the first minutes, is to matter to another.
CONFIG = (
    "conntablesize = 4096; learnhashsize = 4096; halfopen_cache_max = 4096; adopt_grace = 0; closed_memory = 0;"
    " ratehash = { size = 1024; };"
)
KERNEL_MAC, WIRE_MAC = "02:00:00:00:00:51", "02:00:00:00:00:c1"
# The longest a script may take, in seconds; what is stuck is found by packetdrill itself, long before.
SCRIPT_LIMIT = 25
# And the whole.
SUITE_LIMIT = 40 * 60
ALLOWED = pathlib.Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
# The scripts want this one, and a namespace may choose only what the first one allows.
CONGESTION = "cubic"

children, lock, stopping = set(), threading.Lock(), threading.Event()


class Stopped(Exception):
    """The suite was interrupted."""


def call(*command, check=True):
    """A short command, waited for."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def spawn(namespace, *command, **options):
    """A process in a namespace; it ends with this one."""
    line = ["ip", "netns", "exec", namespace, "setpriv", "--pdeathsig", "KILL", "--", *map(str, command)]
    with lock:
        if stopping.is_set():
            raise Stopped
        child = subprocess.Popen(line, stdin=subprocess.DEVNULL, text=True, **options)
        children.add(child)
    return child


def end(child, how=signal.SIGKILL):
    """Ends a process and waits for it."""
    if child.poll() is None:
        child.send_signal(how)
    try:
        child.wait(10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    with lock:
        children.discard(child)
    return child.returncode


class Rig:
    """Three namespaces in a row; the kernel under test is in the first."""

    def __init__(self, number, side, mode, args):
        self.args, self.side, self.mode, self.box = args, side, mode, None
        self.work = pathlib.Path(tempfile.mkdtemp(prefix=f"spx{os.getpid()}-pd."))
        self.kernel, self.middle, self.wire = (f"spx{os.getpid()}-pd{number}-{role}" for role in ("kernel", "box", "wire"))
        self.port = 9000
        try:
            self._build()
        except BaseException:
            self.down()
            raise

    def _build(self):
        for name in (self.kernel, self.middle, self.wire):
            call("ip", "netns", "add", name)
            call("ip", "-n", name, "link", "set", "lo", "up")
        for which in ("default", "all"):
            call("ip", "netns", "exec", self.middle, "sysctl", "-qw", f"net.ipv6.conf.{which}.disable_ipv6=1")
        other = {"lan": "wan", "wan": "lan"}[self.side]
        ends = (
            (self.kernel, "tun0", f"{self.side}0", KERNEL_MAC, 1, "192.168.0.2", WIRE_MAC),
            (self.wire, "wire0", f"{other}0", WIRE_MAC, 2, "192.168.0.1", KERNEL_MAC),
        )
        call("ip", "-n", self.kernel, "link", "add", "ctl0", "type", "veth", "peer", "name", "ctl0", "netns", self.wire)
        for name, outer, inner, mac, last, peer, peer_mac in ends:
            call("ip", "-n", self.middle, "link", "add", inner, "type", "veth",
                 "peer", "name", outer, "address", mac, "netns", name)
            call("ip", "-n", self.middle, "link", "set", inner, "up")
            # What packetdrill judges are packets as on a wire.
            for feature in ("tx", "rx", "tso", "gso", "gro", "txvlan", "rxvlan"):
                call("ip", "netns", "exec", name, "ethtool", "-K", outer, feature, "off", check=False)
            call("ip", "-n", name, "addr", "add", f"192.168.0.{last}/16", "dev", outer)
            call("ip", "-n", name, "addr", "add", f"10.99.0.{last}/24", "dev", "ctl0")
            call("ip", "-n", name, "link", "set", outer, "up")
            call("ip", "-n", name, "link", "set", "ctl0", "up")
            call("ip", "-n", name, "neigh", "add", peer, "lladdr", peer_mac, "nud", "permanent", "dev", outer)
        if self.mode == "bridge":
            call("ip", "-n", self.middle, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0", "forward_delay", "0")
            for inner in ("lan0", "wan0"):
                call("ip", "-n", self.middle, "link", "set", inner, "master", "br0")
            call("ip", "-n", self.middle, "link", "set", "br0", "up")
        else:
            self._start_box()
        time.sleep(0.2)

    def _start_box(self):
        config, log = self.work / "conf", self.work / "log"
        config.write_text(f"synproxyconf = {{ {CONFIG} handshake = {self.mode}; {self.args.config} }};\n")
        with open(log, "w") as out:
            self.box = spawn(self.middle, self.args.programs / "synproxy", "--no-pin", "--control=none", "--state-dir=none", "--config", config,
                             "lan0", "wan0", stdout=out, stderr=out)
        for _ in range(1200):
            if "\nready" in "\n" + log.read_text():
                return
            if self.box.poll() is not None or stopping.is_set():
                break
            time.sleep(0.05)
        raise RuntimeError(f"the proxy did not start (status {self.box.poll()}):\n{log.read_text()}")

    def run(self, script, port, tolerated, trace=None):
        """Runs a script once: whether it passed, what it said, and the differences that were tolerated."""
        self.port += 1
        env = dict(os.environ, TOLERATED=tolerated)
        said = self.work / "wire"
        captures = [self._capture(trace, *at) for at in ((self.kernel, "tun0"), (self.wire, "wire0"))] if trace else []
        with open(said, "w") as out:
            wire = spawn(self.wire, self.args.packetdrill, "--wire_server", "--wire_server_dev=wire0",
                         f"--wire_server_port={self.port}", "--ip_version=ipv4", stdout=out, stderr=out, env=env)
        try:
            self._await_listener(wire)
            passed, output = self._run_client(script, port, env)
            time.sleep(0.05)
        finally:
            end(wire)
            for capture in captures:
                time.sleep(0.3)
                end(capture, signal.SIGTERM)
            # The scripts set a queueing discipline, and remember server state.
            call("ip", "netns", "exec", self.kernel, "tc", "qdisc", "del", "dev", "tun0", "root", check=False)
        seen = re.findall(r"^tolerated ([\w-]+):", said.read_text(), re.M)
        if trace:
            pathlib.Path(f"{trace}.txt").write_text(output + said.read_text())
        return passed, output, set(seen)

    def _run_client(self, script, port, env):
        client = spawn(
            self.kernel, self.args.packetdrill, "--wire_client", "--wire_client_dev=tun0", "--wire_server_ip=10.99.0.2",
            f"--wire_server_port={self.port}", "--send_omit_free", "--tolerance_usecs=250000", f"--bind_port={port}",
            f"--connect_port={port}", "--ip_version=ipv4", "--local_ip=192.168.0.1", "--gateway_ip=192.168.0.2",
            "--netmask_ip=255.255.0.0", "--remote_ip=192.0.2.1", "-D", "TFO_COOKIE=3021b9d889017eeb",
            "-D", "CODE=host_unreachable", "-D", "CMSG_LEVEL_IP=SOL_IP", "-D", "CMSG_TYPE_RECVERR=IP_RECVERR", script.name,
            cwd=script.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, start_new_session=True)
        try:
            output, _ = client.communicate(timeout=SCRIPT_LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(client.pid, signal.SIGKILL)
            output = f"{client.communicate()[0]}it took longer than {SCRIPT_LIMIT} seconds"
        # What the scripts' helper leaves there so that they could undo what they set in this namespace.
        pathlib.Path(f"/tmp/sysctl_restore_{client.pid}.sh").unlink(missing_ok=True)
        if stopping.is_set():
            raise Stopped
        return end(client) == 0, output.strip()

    def _await_listener(self, wire):
        listens = re.compile(rf":{self.port:04X} \S+ 0A ")
        for _ in range(500):
            try:
                if listens.search(pathlib.Path(f"/proc/{wire.pid}/net/tcp").read_text()):
                    return
            except OSError:
                pass
            if stopping.is_set():
                raise Stopped
            time.sleep(0.01)

    def _capture(self, trace, namespace, interface):
        capture = spawn(namespace, "tcpdump", "-i", interface, "-w", f"{trace}-{interface}.pcap", "-U", "--immediate-mode", "-s", "256",
                        "-Z", "root", "-n", "tcp or icmp", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        capture.stderr.readline()
        return capture

    def down(self):
        """Removes all of it. Says how the proxy ended, if that was not well."""
        complaint = None
        if self.box:
            status, log = end(self.box, signal.SIGINT), (self.work / "log").read_text()
            if not stopping.is_set() and (status or "panicked" in log):
                complaint = f"the proxy ended with status {status}:\n{log}"
        for name in (self.kernel, self.middle, self.wire):
            call("ip", "netns", "del", name, check=False)
        shutil.rmtree(self.work, ignore_errors=True)
        return complaint


class Difference:
    """A line of differences.txt."""

    def __init__(self, fields, number):
        if len(fields) != 5:
            sys.exit(f"differences.txt:{number}: {len(fields)} fields, not five")
        self.name, setups, scripts, self.says, self.reason = fields
        self.setups, self.scripts = setups.split(), scripts.split()
        self.seen = collections.Counter()

    def is_for(self, place, script):
        return place in self.setups and any(fnmatch.fnmatch(script, glob) for glob in self.scripts)

    def fails(self):
        """Whether the script fails, as opposed to a packet being other than the script says."""
        return self.says != "-"


def differences():
    lines = (pathlib.Path(__file__).parent / "differences.txt").read_text().splitlines()
    rows = [(n, line) for n, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]
    return [Difference(line.split(" | "), n) for n, line in rows]


def way(script):
    """Whether a script listens or connects."""
    return "listens" if re.search(r"\blisten\(", without_comments(script)) else "connects"


def has_several(script):
    """Whether it sends the data of several connections in their SYNs, of which wire mode follows one."""
    code = without_comments(script)
    return "/fastopen" in str(script) and "MSG_FASTOPEN" in code and len(re.findall(r"\bsocket\(", code)) > 1


def without_comments(script):
    return re.sub(r"//.*|/\*.*?\*/", "", script.read_text())


class Suite:
    """All runs, and what came of them."""

    def __init__(self, args):
        self.args, self.named = args, differences()
        folder = args.scripts
        scripts = [path for path in sorted(folder.rglob("*.pkt")) if not re.search(r"(-v6|ipv6)\.pkt$", path.name)]
        self.ports, self.ways = {}, {}
        for number, path in enumerate(scripts):
            name = str(path.relative_to(folder))
            # One looks its port up in a table of the kernel, by a number written in the script.
            self.ports[name] = 8080 if "1F90" in path.read_text() else 20000 + number
            if not has_several(path):
                self.ways[name] = way(path)
        self.took, self.unnamed = {}, []

    def phase(self, title, side, mode, scripts, job):
        """Runs `job(rig, script)` for every script, on several rigs."""
        waiting, failure = queue.Queue(), []
        for script in sorted(scripts, key=lambda name: -self.took.get(name, 0)):
            waiting.put(script)

        def work(number):
            rig = None
            try:
                rig = Rig(number, side, mode, self.args)
                while not stopping.is_set():
                    try:
                        script = waiting.get_nowait()
                    except queue.Empty:
                        break
                    job(rig, script)
            except Stopped:
                pass
            except Exception as error:
                failure.append(f"{title}: {error}")
            finally:
                complaint = rig and rig.down()
                if complaint:
                    failure.append(f"{title}: {complaint}")

        threads = [threading.Thread(target=work, args=(number,)) for number in range(min(self.args.jobs, len(scripts)))]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(0.2)
                if time.monotonic() > self.args.until:
                    stop()
                    failure.append(f"{title}: the suite has taken more than {SUITE_LIMIT // 60} minutes")
        if stopping.is_set() and not failure:
            raise Stopped
        if failure:
            raise RuntimeError("\n".join(failure))

    def bridge(self, way_of):
        """The scripts of one way that pass over a bridge, and how long they take."""
        passed = set()

        def job(rig, script):
            for _ in range(min(2, self.args.tries)):
                begun = time.monotonic()
                good, said, _ = rig.run(self.args.scripts / script, self.ports[script], "")
                if good:
                    passed.add(script)
                    self.took[script] = time.monotonic() - begun
                    return
            if self.args.verbose:
                print(f"bridge: {script}: {said}", flush=True)

        wanted = [name for name, its in self.ways.items() if its == way_of and self.args.wants(name)]
        begun = time.monotonic()
        self.phase("bridge", "lan", "bridge", wanted, job)
        print(f"  bridge    {way_of:8}  {len(passed)} of {len(wanted)} scripts pass"
              f"  ({time.monotonic() - begun:.0f} s)", flush=True)
        return passed

    def attempt(self, rig, place, script, number):
        """Runs a script through the proxy once: whether it passed, what it said, what was tolerated, and which names its failure has."""
        tolerated = " ".join(d.name for d in self.named if d.is_for(place, script) and not d.fails())
        trace = self.args.trace and f"{self.args.trace}/{place.replace('/', '-')}-{script.replace('/', '_')[:-4]}-{number}"
        good, said, seen = rig.run(self.args.scripts / script, self.ports[script], tolerated, trace)
        return good, said, seen, [d for d in self.named if d.is_for(place, script) and d.fails() and re.search(d.says, said)]

    def proxy(self, setup, mode, scripts):
        """The scripts in one set-up through the proxy."""
        side, _ = SETUPS[setup]
        place, kinds = f"{setup}/{mode}", collections.defaultdict(set)

        def job(rig, script):
            if setup in "AC":
                rig.run(self.args.scripts / script, self.ports[script], "all")
            for attempt in range(self.args.tries):
                good, said, seen, fails = self.attempt(rig, place, script, attempt)
                if good or fails:
                    break
            with lock:
                if good:
                    kind, found = ("tolerated" if seen else "equal"), [d for d in self.named if d.name in seen]
                else:
                    kind, found = ("fails" if fails else "unnamed"), fails
                kinds[kind].add(script)
                for difference in found:
                    difference.seen[place] += 1
                if kind == "unnamed":
                    self.unnamed.append((place, script, said))

        begun = time.monotonic()
        self.phase(place, side, mode, scripts, job)
        counts = {kind: len(kinds[kind]) for kind in ("equal", "tolerated", "fails", "unnamed")}
        print(f"  {place:9} {SETUPS[setup][1]:8}  {counts['equal']} as over the bridge, {counts['tolerated']} with named differences"
              f" in packets, {counts['fails']} fail by name, {counts['unnamed']} to be tried again"
              f"  ({time.monotonic() - begun:.0f} s)", flush=True)

    def try_again(self):
        """What failed without a name is tried alone, in turns with the bridge: a busy machine fails a script too, now here and now there."""
        suspects, self.unnamed = self.unnamed, []
        for place, script, said in suspects:
            setup, mode = place.split("/")
            over_bridge = through_proxy = 0
            rigs = []
            try:
                rigs = [Rig(number, SETUPS[setup][0], which, self.args) for number, which in enumerate(["bridge", mode])]
                rigs[1].run(self.args.scripts / script, self.ports[script], "all")
                for number in range(2 * self.args.tries):
                    over_bridge += rigs[0].run(self.args.scripts / script, self.ports[script], "")[0]
                    good, said_now, seen, fails = self.attempt(rigs[1], place, script, f"again{number}")
                    through_proxy += bool(good or fails)
                    for difference in fails or [d for d in self.named if good and d.name in seen]:
                        difference.seen[place] += 1
                    said = said if good else said_now
                    if through_proxy or over_bridge <= number:
                        break
            finally:
                complaints = [rig.down() for rig in rigs]
            if any(complaints):
                raise RuntimeError(f"{place} {script}: {complaints}")
            # One that now and then fails over the bridge too, alone on the machine, hangs on how the kernel schedules its process.
            differs = not through_proxy and over_bridge == 2 * self.args.tries
            if differs:
                self.unnamed.append((place, script, said))
            told = "a difference" if differs else "no difference" if through_proxy else "nothing can be said"
            print(f"  {place:9} {script}: tried alone, {told}", flush=True)

    def run(self):
        if not any(self.args.wants(name) for name in self.ways):
            raise RuntimeError(f"there is no such script in {self.args.scripts}")
        setups = [setup for setup in SETUPS if setup in self.args.setups]
        passed = {its: self.bridge(its) for its in sorted({SETUPS[setup][1] for setup in setups})}
        for setup in setups:
            for mode in MODES:
                if mode in self.args.modes:
                    self.proxy(setup, mode, passed[SETUPS[setup][1]])
        self.try_again()
        return self.verdict()

    def verdict(self):
        """Prints what was found; 0 if every difference has a name and every name was seen."""
        print("\n  named differences, and in how many scripts")
        missing = []
        for difference in self.named:
            places = [p for p in difference.setups if p[0] in self.args.setups and p.split("/")[1] in self.args.modes]
            seen = ", ".join(f"{place} {difference.seen[place]}" for place in places)
            print(f"  {difference.name:22} {seen}")
            # Whether a script fails may hang on a moment; what it is forgiven does not. What did not pass over the bridge shows neither.
            unseen = [place for place in places if not difference.seen[place]]
            shows = any(difference.is_for(place, script) for place in places for script in self.took)
            if shows and unseen and (not difference.fails() or len(unseen) == len(places)):
                missing.append(f"{difference.name} in {' '.join(unseen)}")
        for place, script, said in self.unnamed:
            print(f"\na difference without a name: {place} {script}: {said}")
        # A part of the scripts need not show everything.
        if missing and not self.args.texts:
            print(f"\nnamed, but not seen: {'; '.join(missing)}")
        return 1 if self.unnamed or missing and not self.args.texts else 0


def sweep():
    """Removes what a suite left behind that was killed: what carries the id of a process that is no more."""
    for path in [*pathlib.Path("/run/netns").glob("spx*-pd*"), *pathlib.Path(tempfile.gettempdir()).glob("spx*-pd.*")]:
        owner = re.match(r"spx(\d+)-", path.name)
        if not owner or pathlib.Path(f"/proc/{owner[1]}").exists():
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            call("ip", "netns", "del", path.name, check=False)


def stop(*_):
    """Ends what runs; the threads put their rigs away."""
    stopping.set()
    for child in list(children):
        if child.poll() is None:
            child.terminate()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packetdrill", type=pathlib.Path)
    parser.add_argument("scripts", type=pathlib.Path)
    parser.add_argument("programs", type=pathlib.Path)
    parser.add_argument("texts", nargs="*")
    parser.add_argument("--jobs", type=int, default=2 * (os.cpu_count() or 1))
    parser.add_argument("--setups", default="ABCD")
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--tries", type=int, default=3)
    parser.add_argument("--config", default="", help="further entries of the proxy's configuration")
    parser.add_argument("--trace", help="a folder for captures at both ends")
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_intermixed_args()
    args.packetdrill, args.scripts, args.programs = (p.resolve() for p in (args.packetdrill, args.scripts, args.programs))
    args.wants = lambda name: not args.texts or any(text in name for text in args.texts)
    args.until = time.monotonic() + SUITE_LIMIT
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    if args.trace:
        os.makedirs(args.trace, exist_ok=True)
    sweep()
    allowed = ALLOWED.read_text()
    if CONGESTION not in allowed.split():
        ALLOWED.write_text(f"{allowed.strip()} {CONGESTION}")
    try:
        return Suite(args).run()
    except Stopped:
        print("interrupted; everything is put away", file=sys.stderr)
        return 130
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        ALLOWED.write_text(allowed)


if __name__ == "__main__":
    sys.exit(main())
