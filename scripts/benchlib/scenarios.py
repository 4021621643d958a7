"""What is measured."""

import collections
import json
import os
import re
import signal
import subprocess
import sys
import time

from .rig import LOAD, read


class Bench:
    """The loads. Each returns a sample: "units" of work done, their "rate", and whatever else was seen."""

    def __init__(self, hosts, seconds, folder):
        self.hosts, self.seconds, self.folder = hosts, seconds, folder
        # scenario -> units/s of the reference, for the fixed rates; until it is measured, what any machine does
        self.capacity = {"short": 4000.0, "keepalive": 20000.0, "udp-rtt": 40000.0}

    def url(self, subject, path="/"):
        return f"http://{subject.address('http')}{path}"

    def wrk(self, subject, connections, path="/", close=False):
        header = "-H 'Connection: close' " if close else ""
        out = self.hosts.generate(f"wrk -t1 -c{connections} -d{self.seconds} --latency {header}{self.url(subject, path)}")
        done, size = re.search(r"(\d+) requests in [\d.]+\w+, ([\d.]+\w+) read", out).groups()
        errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", out)
        bad = re.search(r"Non-2xx or 3xx responses: (\d+)", out)
        return {"units": int(done), "rate": float(re.search(r"Requests/sec:\s+([\d.]+)", out).group(1)),
                "p50_us": duration_us(re.search(r"^\s+50%\s+(\S+)", out, re.M).group(1)),
                "p99_us": duration_us(re.search(r"^\s+99%\s+(\S+)", out, re.M).group(1)),
                "errors": sum(map(int, errors.groups())) if errors else 0, "bad": int(bad.group(1)) if bad else 0}

    def short(self, subject):
        return self.wrk(subject, 32, close=True)

    def keepalive(self, subject):
        return self.wrk(subject, 64)

    def object(self, subject, size):
        sample = self.wrk(subject, 4, path=f"/o/{size}")
        sample["units"] *= size / 1e6
        sample["rate"] *= size / 1e6
        return sample

    def iperf(self, subject, streams, reverse=False):
        host, port = subject.address("iperf").split(":")
        more = " -R" if reverse else ""
        out = json.loads(self.hosts.generate(f"iperf3 -c {host} -p {port} -t {self.seconds} -P {streams} -J{more}"))
        end = out["end"]["sum_received"]
        return {"units": end["bytes"] / 1e9, "rate": end["bits_per_second"] / 8e9}

    def requests(self, subject, rate, more=""):
        """HTTP requests that come at their own pace, whether or not earlier ones were answered."""
        out = json.loads(self.hosts.generate(
            f"{LOAD} http {subject.address('http')} --rate {rate} --seconds {self.seconds}{more}"))
        return {"units": out["done"], "rate": rate, "errors": out["errors"], **latencies(out)}

    def rate_short(self, subject):
        return self.requests(subject, int(self.capacity["short"] / 2), " --connections 512 --close")

    def rate_keepalive(self, subject):
        return self.requests(subject, int(self.capacity["keepalive"] / 2), " --connections 64")

    def mixed(self, subject, bulk_rate=None):
        """1,000 requests/s beside eight bulk streams through the same balancer, which go as fast as they can or at so many bits/s each."""
        host, port = subject.address("iperf").split(":")
        paced = f" -b {bulk_rate}" if bulk_rate else ""
        bulk = self.hosts.start("client", "client", f"iperf3 -c {host} -p {port} -t {self.seconds + 1} -P 8 -J{paced}",
                                stdout=subprocess.PIPE, text=True)
        time.sleep(0.5)
        sample = self.requests(subject, 1000)
        moved = json.loads(bulk.communicate(timeout=10)[0])["end"]["sum_received"]
        return sample | {"bulk": moved["bits_per_second"] / 8e9}

    def datagrams(self, subject, more=""):
        out = json.loads(self.hosts.generate(f"{LOAD} udp-flows {subject.address('echo')} --seconds {self.seconds}{more}"))
        return {"units": out["done"], "rate": out["done"] / out["seconds"], "lost": out["lost_share"], **latencies(out)}

    def udp_flows(self, subject):
        return self.datagrams(subject, f" --flows 4000 --rate {int(self.capacity['udp-rtt'] * 0.7)}")

    def sink_bytes(self):
        self.hosts.sink.stdin.write("\n")
        self.hosts.sink.stdin.flush()
        return json.loads(self.hosts.sink.stdout.readline())["bytes"]

    def udp_bulk(self, subject):
        before = self.sink_bytes()
        out = json.loads(self.hosts.generate(f"{LOAD} udp-blast {subject.address('sink')} --seconds {self.seconds}"))
        time.sleep(0.2)
        got = self.sink_bytes() - before
        return {"units": got / 1e9, "rate": got / 1e9 / out["seconds"], "lost": 1 - got / 1200 / max(out["sent"], 1)}

    # One-off figures

    def idle(self, subject, connections=4000, first=500):
        """User memory and descriptors of an idle connection that has served one request: the difference between 500 and 4,500."""
        def look():
            pids = subject.worker_pids()
            rollups = [read(f"/proc/{pid}/smaps_rollup") for pid in pids]
            total = lambda key: sum(int(re.search(rf"^{key}:\s+(\d+)", r, re.M).group(1)) for r in rollups)
            return (total("Private_Clean") + total("Private_Dirty"), total("Pss"),
                    sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids))

        def hold(n):
            command = self.hosts.command("client", "client", f"{LOAD} hold {subject.address('http')} --connections {n}")
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            if "ready" not in child.stdout.readline():
                raise RuntimeError("connections were not held")
            return child
        children = [hold(first)]
        time.sleep(0.5)
        before = look()
        children.append(hold(connections))
        time.sleep(1.0)
        after = look()
        for child in children:
            child.communicate()
        time.sleep(0.5)
        private, pss, fds = ((b - a) / connections for a, b in zip(before, after))
        return {"private_kib": private, "pss_kib": pss, "descriptors": fds}

    def syscalls(self, subject, connections=1):
        """System calls of the balancer for a short connection, counted by strace (which slows it down)."""
        out = f"{self.folder}/strace"
        tracer = subprocess.Popen(["strace", "-f", "-c", "-o", out] + [f"-p{pid}" for pid in subject.worker_pids()],
                                  stderr=subprocess.DEVNULL)
        time.sleep(0.7)
        done = self.hosts.generate(f"{LOAD} http {subject.address('http')} --rate 200 --seconds 2 --close --connections 64"
                                   if connections == 1 else
                                   f"wrk -t1 -c{connections} -d2 -H 'Connection: close' {self.url(subject)}")
        tracer.send_signal(signal.SIGINT)
        tracer.wait()
        units = json.loads(done)["done"] if connections == 1 else int(re.search(r"(\d+) requests in", done).group(1))
        if not units:
            raise RuntimeError("no connection was served")
        calls = {}
        for line in read(out).splitlines():
            fields = line.split()
            if len(fields) >= 5 and fields[0].replace(".", "").isdigit() and fields[-1] != "total":
                calls[fields[-1]] = int(fields[3]) / units
        calls = {name: round(n, 2) for name, n in sorted(calls.items(), key=lambda kv: -kv[1]) if n >= 0.01}
        return {"total": round(sum(calls.values()), 2), "calls": calls}


# What each of eight bulk streams sends where they do not go as fast as they can, bits/s: together less than any of the balancers can.
PACED = 1_200_000_000


def duration_us(text):
    value, unit = re.match(r"([\d.]+)(\w+)", text).groups()
    return float(value) * {"us": 1, "ms": 1e3, "s": 1e6, "m": 6e7}[unit]


def latencies(out):
    return {key: out[key] for key in ("p50_us", "p99_us", "p999_us")}


# run(bench, subject) -> sample; the service that the subject must offer; CPU for a unit is told in `unit`, which is `scale`
# seconds of a unit of the sample; the rate in `rate`.
Scenario = collections.namedtuple("Scenario", "run service unit scale rate title")


def table():
    us = lambda run, service, title: Scenario(run, service, "us", 1e6, "units/s", title)
    gb = lambda run, service, title: Scenario(run, service, "s/GB", 1, "GB/s", title)
    found = {
        "short": us(Bench.short, "http-close", "short connections (wrk, 32 at once, close)"),
        "keepalive": us(Bench.keepalive, "http", "keep-alive requests (wrk, 64 connections)"),
        "bulk1": gb(lambda bench, subject: bench.iperf(subject, 1), "iperf", "bulk, 1 stream (iperf3)"),
        "bulk8": gb(lambda bench, subject: bench.iperf(subject, 8), "iperf", "bulk, 8 streams (iperf3)"),
        "bulk1r": gb(lambda bench, subject: bench.iperf(subject, 1, True), "iperf", "bulk, 1 stream to the client (iperf3 -R)"),
        "rate-short": us(Bench.rate_short, "http-close", "short connections at half of the reference's capacity"),
        "rate-keepalive": us(Bench.rate_keepalive, "http", "keep-alive requests at half of the reference's capacity"),
        "rate-mixed": us(Bench.mixed, "mixed", "1,000 requests/s beside 8 bulk streams"),
        "rate-mixed-paced": us(lambda bench, subject: bench.mixed(subject, PACED), "mixed",
                               f"1,000 requests/s beside 8 bulk streams that send {8 * PACED / 8e9} GB/s together"),
        "udp-rtt": us(Bench.datagrams, "echo", "UDP 64 B round trips, 64 flows"),
        "udp-flows": us(Bench.udp_flows, "echo", "4,000 UDP flows at once, 0.7 x nginx's rate"),
        "udp-bulk": gb(Bench.udp_bulk, "sink", "UDP bulk, one flow, 1,200 B datagrams in GSO batches"),
    }
    for k in range(0, 15, 2):
        size = 1024 << k
        name = f"{size >> 10}KiB" if size < 1 << 20 else f"{size >> 20}MiB"
        run = lambda bench, subject, size=size: bench.object(subject, size)
        found[f"object-{name}"] = Scenario(run, "http", "s/GB", 1e3, "MB/s", f"objects of {name} (wrk, 4 connections)")
    return found


TABLE = table()
# Looked at once, not in rounds.
ONE_OFF = {"idle": "idle connections", "syscalls": "system calls for a short connection"}
QUICK = ["short", "keepalive", "bulk1", "bulk8", "idle", "udp-rtt"]


def measure(bench, subject, name):
    """One sample with its CPU accounts, as a line of the report; None if it failed."""
    scenario, hosts = TABLE[name], bench.hosts
    before, began = hosts.clocks(subject.account), time.monotonic()
    try:
        sample = scenario.run(bench, subject)
    except (RuntimeError, subprocess.TimeoutExpired, KeyError, AttributeError) as error:
        print(f"    {subject.name}: failed: {error}", file=sys.stderr)
        return None
    after, took = hosts.clocks(subject.account), time.monotonic() - began
    spent = {key: after[key] - before[key] for key in after}
    # Who moved nothing has no cost for a unit.
    if sample["units"] > 0:
        sample |= {key: spent[key] * scenario.scale / sample["units"] for key in ("own", "all", "machine")}
    sample["foreign"] = max(0.0, spent["machine"] - spent["all"]) / took
    sample["errors"] = sample.get("errors", 0) + sample.pop("bad", 0)
    return sample


def once(bench, subject, name):
    """What a one-off look finds; None if it failed."""
    try:
        if name == "idle":
            return bench.idle(subject)
        return {"apart": bench.syscalls(subject), "at_once": bench.syscalls(subject, 32)}
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        print(f"    {subject.name}: failed: {error}", file=sys.stderr)
        return None
