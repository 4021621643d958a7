"""The three hosts, and the accounts that processes are run on."""

import glob
import os
import re
import signal
import statistics
import subprocess
import time

CLIENT, NEAR, FAR, BACKEND = "10.77.1.2", "10.77.1.1", "10.77.2.1", "10.77.2.2"
# DNAT keeps the client's address: a backend address of its own keeps its connections apart from the direct ones' TIME_WAIT.
BACKEND_DNAT = "10.77.2.3"
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# Service: port at the backend, offset at the balancer.
SERVICES = {"http": (8080, 0), "iperf": (5201, 1), "echo": (7007, 2), "sink": (7009, 3)}
LOAD = f"{ROOT}/target/release/examples/bench_load"
TICK = os.sysconf("SC_CLK_TCK")
CPUS = len(os.sched_getaffinity(0))


def sh(command, check=True):
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    if check and done.returncode:
        raise RuntimeError(f"{command}: {done.stderr.strip()}")
    return done.stdout


def checkout():
    """The commit of this tree."""
    return sh(f"git -C {ROOT} describe --always --dirty --abbrev=12", check=False).strip() or "?"


def read(path):
    with open(path) as file:
        return file.read()


def median(values):
    values = [v for v in values if v is not None]
    return statistics.median(values) if values else None


class Hosts:
    """Namespaces wb<pid>-{client,balancer,backend} on veth, and a cgroup for the processes of each."""

    def __init__(self, offloads):
        self.sweep()
        self.tag = f"wb{os.getpid()}"
        self.offloads = offloads
        self.children = []
        mounts = [line.split() for line in read("/proc/mounts").splitlines()]
        self.cgroup = next(m[1] for m in mounts if m[2] == "cgroup2") + f"/{self.tag}"

    @staticmethod
    def sweep():
        """Removes what a killed run left behind."""
        for name in re.findall(r"^wb(\d+)-\w+", sh("ip netns list"), re.M):
            if not os.path.exists(f"/proc/{name}"):
                for host in ("client", "balancer", "backend"):
                    sh(f"ip netns del wb{name}-{host}", check=False)

    def __enter__(self):
        try:
            self.build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def build(self):
        for host in ("client", "balancer", "backend"):
            os.makedirs(f"{self.cgroup}/{host}")
            sh(f"ip netns add {self.ns(host)}")
            self.run(host, "ip link set lo up")
            self.run(host, "sysctl -qw net.ipv4.ip_local_port_range='1024 65535' net.core.somaxconn=65535 "
                           "net.ipv4.tcp_max_syn_backlog=65535 net.ipv4.ip_forward=1")
        for left, left_ip, right, right_ip in (("client", CLIENT, "balancer", NEAR), ("backend", BACKEND, "balancer", FAR)):
            sh(f"ip -n {self.ns(left)} link add eth0 type veth peer name to-{left} netns {self.ns(right)}")
            for host, link, address in ((left, "eth0", left_ip), (right, f"to-{left}", right_ip)):
                sh(f"ip -n {self.ns(host)} addr add {address}/24 dev {link}")
                sh(f"ip -n {self.ns(host)} link set {link} up")
                if not self.offloads:
                    self.run(host, f"ethtool -K {link} gro off gso off tso off tx off")
            if left == "backend":
                sh(f"ip -n {self.ns(left)} addr add {BACKEND_DNAT}/24 dev eth0")
            sh(f"ip -n {self.ns(left)} route add default via {right_ip}")

    def __exit__(self, *_):
        for child in reversed(self.children):
            if child.poll() is None:
                child.terminate()
        for child in self.children:
            try:
                child.wait(3)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        for host in ("client", "balancer", "backend"):
            for pid in sh(f"ip netns pids {self.ns(host)}", check=False).split():
                os.kill(int(pid), signal.SIGKILL)
            sh(f"ip netns del {self.ns(host)}", check=False)
        for path in sorted(glob.glob(f"{self.cgroup}/**/", recursive=True), reverse=True):
            for _ in range(50):
                try:
                    os.rmdir(path)
                    break
                except OSError:
                    time.sleep(0.1)

    def ns(self, host):
        return f"{self.tag}-{host}"

    def command(self, host, account, command):
        group = f"{self.cgroup}/{account}"
        os.makedirs(group, exist_ok=True)
        return ["sh", "-c", f"echo $$ > {group}/cgroup.procs; exec ip netns exec {self.ns(host)} {command}"]

    def run(self, host, command):
        return sh(f"ip netns exec {self.ns(host)} {command}")

    def start(self, host, account, command, **how):
        how.setdefault("stdout", subprocess.DEVNULL)
        how.setdefault("stderr", subprocess.DEVNULL)
        child = subprocess.Popen(self.command(host, account, command), **how)
        self.children.append(child)
        return child

    def generate(self, command, timeout=60):
        """Runs a load generator to its end; its output."""
        done = subprocess.run(self.command("client", "client", command), capture_output=True, text=True, timeout=timeout)
        if done.returncode:
            raise RuntimeError(f"{command}: {done.stdout[-300:]} {done.stderr[-300:]}")
        return done.stdout

    def pids(self, account):
        return [int(pid) for pid in read(f"{self.cgroup}/{account}/cgroup.procs").split()]

    def wait_for(self, host, ip, port, child=None):
        probe = f"import socket; socket.create_connection(('{ip}', {port}), 0.3)"
        for _ in range(100):
            if child is not None and child.poll() is not None:
                raise RuntimeError(f"ended early: {child.args}")
            try:
                self.run(host, f"python3 -c \"{probe}\"")
                return
            except RuntimeError:
                time.sleep(0.1)
        raise RuntimeError(f"nothing answers at {ip}:{port}")

    # CPU, in seconds

    def clocks(self, account):
        usage = re.search(r"usage_usec (\d+)", read(f"{self.cgroup}/{account}/cpu.stat"))
        own = int(usage.group(1)) / 1e6 if account else 0.0
        everything = int(re.search(r"usage_usec (\d+)", read(f"{self.cgroup}/cpu.stat")).group(1)) / 1e6
        softirqd = sum(int(read(path).split()[0]) for path in SOFTIRQD) / 1e9
        return {"own": own, "all": everything + softirqd, "machine": busy()}


def busy():
    """What all processors have spent, seconds since some moment: what they were neither idle nor taken away. Idle time is measured,
    while that of users and the kernel is sampled by the timer, which meets a load that has the same period always or never."""
    fields = [int(v) for v in read("/proc/stat").split("\n", 1)[0].split()[1:]]
    return time.monotonic() * os.cpu_count() - (fields[3] + fields[4] + fields[7]) / TICK


def softirqd():
    for path in glob.glob("/proc/[0-9]*/comm"):
        try:
            if read(path).startswith("ksoftirqd"):
                yield path.replace("comm", "schedstat")
        except OSError:
            pass


SOFTIRQD = list(softirqd())


def backends(hosts, folder):
    """The services behind the balancers."""
    os.makedirs(f"{folder}/www", exist_ok=True)
    size = 1024
    while size <= 16 << 20:
        with open(f"{folder}/www/{size}", "wb") as file:
            file.write(b"x" * size)
        size *= 2
    os.chmod(folder, 0o755)
    conf = f"""worker_processes 1;
worker_rlimit_nofile 20000;
error_log /dev/null;
pid {folder}/nginx-be.pid;
daemon off;
events {{ worker_connections 19000; }}
http {{
  access_log off;
  keepalive_timeout 3600s;
  keepalive_requests 1000000000;
  client_header_timeout 3600s;
  sendfile on;
  tcp_nopush on;
  server {{
    listen {SERVICES["http"][0]} backlog=65535;
    location = / {{ return 200 "0123456789abcdef0123456789abcdef"; }}
    location /o/ {{ alias {folder}/www/; open_file_cache max=100; }}
  }}
}}
"""
    path = f"{folder}/backend.conf"
    with open(path, "w") as file:
        file.write(conf)
    hosts.start("backend", "backend", f"nginx -p /usr/share/nginx -c {path}")
    hosts.start("backend", "backend", f"iperf3 -s -p {SERVICES['iperf'][0]}")
    hosts.start("backend", "backend", f"{LOAD} udp-echo 0.0.0.0:{SERVICES['echo'][0]}", stdin=subprocess.PIPE)
    hosts.sink = hosts.start("backend", "backend", f"{LOAD} udp-sink 0.0.0.0:{SERVICES['sink'][0]}", stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True)
    hosts.wait_for("backend", BACKEND, SERVICES["http"][0])


def wait_quiet(limit, most):
    """Waits until other programs use less than `most` cores, `limit` seconds at most."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        start = busy()
        time.sleep(0.4)
        if (busy() - start) / 0.4 < most:
            return


def come_first():
    """Makes the whole run one scheduling group (sched(7), autogroup) of high priority, or at least each process of it."""
    try:
        os.setsid()
    except OSError:
        pass  # already leads its session
    os.nice(-20)
    try:
        with open("/proc/self/autogroup", "w") as file:
            file.write("-20")
    except OSError:
        pass
