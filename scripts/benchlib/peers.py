"""Who is measured."""

import hashlib
import os
import re
import subprocess
import time

from .rig import BACKEND, BACKEND_DNAT, LOAD, NEAR, ROOT, SERVICES, checkout, sh

# The flows of one round are over before those of the next come: descriptors are not what is measured.
UDP_IDLE = "3s"


class Subject:
    """Each is configured as a careful administrator would: TCP mode, no logging, no health checks (nginx's stream module
    has none), buffers at their defaults, one process or thread for each worker."""

    kind = name = None
    binary = None  # the program, where it can be another than the installed one
    environment = {}
    text = None  # the configuration, once it is started

    def __init__(self, hosts, workers, folder, base):
        self.hosts, self.workers, self.folder = hosts, workers, folder
        self.base = base  # first port; the services follow
        self.account = f"balancer/{self.name}"
        os.makedirs(f"{hosts.cgroup}/{self.account}", exist_ok=True)

    @classmethod
    def about(cls):
        """Version, and how it was built."""
        return None

    def address(self, service):
        return f"{NEAR}:{self.base + SERVICES[service][1]}"

    def config(self, suffix, text):
        path = f"{self.folder}/{self.name}.{suffix}"
        with open(path, "w") as file:
            file.write(text)
        return path

    def start(self):
        child = self.launch()
        if child:
            self.hosts.wait_for("client", NEAR, self.base, child)

    def launch(self):
        return None

    def run(self, command):
        return self.hosts.start("balancer", self.account, command, env={**os.environ, **self.environment})

    def enter(self):
        """Called before a sample of this subject, `leave` after it."""

    def leave(self):
        pass

    def serves(self, service):
        """`http-close`: a connection for each request; `mixed`: requests and streams through one thread."""
        return service in ("http", "http-close", "iperf", "mixed")

    def pids(self):
        return self.hosts.pids(self.account)

    def worker_pids(self):
        return self.pids()


class Direct(Subject):
    kind = name = "direct"

    def address(self, service):
        return f"{BACKEND}:{SERVICES[service][0]}"

    def serves(self, service):
        return True


class Dnat(Subject):
    """Rules are in place only while they are measured: connection tracking would slow everybody else down."""

    kind = name = "nft-dnat"

    def start(self):
        rules = "".join(f"{proto} dport {self.base + offset} dnat to {BACKEND_DNAT if proto == 'tcp' else BACKEND}:{port}\n"
                        for proto in ("tcp", "udp") for port, offset in SERVICES.values())
        text = ("table ip bench { chain pre { type nat hook prerouting priority dstnat;\n" + rules +
                "}\n chain post { type nat hook postrouting priority srcnat; }\n}\n")
        self.rules = self.config("nft", text)

    def enter(self):
        self.hosts.run("balancer", f"nft -f {self.rules}")

    def leave(self):
        self.hosts.run("balancer", "nft delete table ip bench")

    def serves(self, service):
        return True


class Haproxy(Subject):
    kind = name = binary = "haproxy"

    @classmethod
    def about(cls):
        told = sh(f"{cls.binary} -vv", check=False)
        # Warnings make no difference to what is built.
        said = lambda key: re.sub(r" -W(?!l,)\S+", "", " ".join(re.findall(rf"^\s*{key}\s*[=:]\s*(.*)$", told, re.M)[:1]))
        kept = (f"{key}={said(key)}" for key in ("TARGET", "CC", "CFLAGS", "OPTIONS"))
        version = re.search(r"HAProxy version (\S+)", told)
        return {"version": f"HAProxy {version[1]}", "build": ", ".join(kept)} if version else {"version": "?"}

    def launch(self):
        text = f"""global
    nbthread {self.workers}
    maxconn 8000
    maxpipes 1000
defaults
    mode tcp
    option splice-auto
    timeout connect 5s
    timeout client 600s
    timeout server 600s
"""
        for service in ("http", "iperf"):
            port, offset = SERVICES[service]
            text += f"""listen {service}
    bind {NEAR}:{self.base + offset}
    server s {BACKEND}:{port}
"""
        self.text = text
        return self.run(f"{self.binary} -db -q -f {self.config('cfg', text)}")


class Nginx(Subject):
    kind = name = binary = "nginx"

    @classmethod
    def about(cls):
        told = sh(f"{cls.binary} -V 2>&1", check=False)
        said = lambda pattern: " ".join(re.findall(pattern, told)[:1])
        # Where files lie makes no difference.
        options = re.sub(r"--\S*(path|prefix)=\S+ ?", "", said(r"configure arguments: (.*)"))
        return {"version": "nginx " + said(r"nginx/(\S+)"), "build": options}

    def launch(self):
        servers = ""
        for service, (port, offset) in SERVICES.items():
            udp = " udp" if service in ("echo", "sink") else ""
            reuse = " reuseport" if self.workers > 1 or udp else ""
            timeout = f" proxy_timeout {UDP_IDLE};" if udp else ""
            servers += f"  server {{ listen {NEAR}:{self.base + offset}{udp}{reuse}; proxy_pass {BACKEND}:{port};{timeout} }}\n"
        # Debian's loads what another build may have inside.
        module = "load_module modules/ngx_stream_module.so;\n" if "--with-stream=dynamic" in self.about()["build"] else ""
        text = f"""worker_processes {self.workers};
worker_rlimit_nofile 20000;
error_log /dev/null;
pid {self.folder}/{self.name}.pid;
daemon off;
{module}events {{ worker_connections 18000; }}
stream {{
  access_log off;
  tcp_nodelay on;
  proxy_timeout 600s;
{servers}}}
"""
        self.text = text
        return self.run(f"{self.binary} -p /usr/share/nginx -c {self.config('conf', text)}")

    def serves(self, service):
        return True

    def worker_pids(self):
        return [pid for pid in self.pids() if b"worker" in open(f"/proc/{pid}/cmdline", "rb").read()]


class Bare(Subject):
    """What relaying through two sockets costs at the least: loops of one thread that move bytes and do nothing else, one for each
    service. Among a peer's variables `HTTP` is the loop for requests (`ring` in place of `copy`) and its words, `SPLICE` has words for
    the one that splices."""

    kind, name, binary = "bare", "bare", f"{ROOT}/target/release/examples/bench_bare"

    @classmethod
    def about(cls):
        words = [f"{service}={words}" for service, words in cls.environment.items()]
        return {"version": "loops", "build": ", ".join(words) or "as they are"}

    def launch(self):
        loops = {"iperf": f"splice {self.environment.get('SPLICE', '')}", "echo": "udp",
                 "http": self.environment.get("HTTP", "copy")}
        children = [self.run(f"{self.binary} {loop} {self.address(service)} {BACKEND}:{SERVICES[service][0]}")
                    for service, loop in loops.items()]
        return children[-1]

    def serves(self, service):
        return self.workers == 1 and service in ("http", "http-close", "iperf", "echo")


class Weir(Subject):
    kind, name, binary = "weir", "weir", f"{ROOT}/target/release/weir"
    fresh = False  # whether it was built for this run

    @classmethod
    def about(cls):
        with open(cls.binary, "rb") as file:
            digest = hashlib.sha256(file.read()).hexdigest()[:12]
        # Of a build that was not made just now only the bytes are known.
        build = [f"commit {checkout()}"] * (cls.fresh and cls.binary == Weir.binary) + [f"sha256 {digest}"]
        build += [f"{key}={value}" for key, value in cls.environment.items()]
        return {"version": sh(f"{cls.binary} --version", check=False).strip() or "?", "build": ", ".join(build)}

    def launch(self):
        def build(with_udp):
            listeners, pools = "", ""
            for service, (port, offset) in SERVICES.items():
                udp = service in ("echo", "sink")
                if udp and not with_udp:
                    continue
                protocol = "udp" if udp else "tcp"
                idle = f", udp: {{idle: {UDP_IDLE}}}" if udp else ""
                listeners += f"  {service}: {{protocol: {protocol}, bind: ['{NEAR}:{self.base + offset}'], pool: {service}{idle}}}\n"
                pools += (f"  {service}: {{backends: [{{name: s, address: '{BACKEND}:{port}'}}], health: {{type: none}}}}\n")
            return (f"workers: {self.workers}\nadmin: {self.folder}/{self.name}.sock\nlog: {{access: 'off'}}\n"
                    f"listeners:\n{listeners}pools:\n{pools}")
        # Older builds refuse what newer ones offer.
        self.udp = True
        self.text = build(True)
        path = self.config("yaml", self.text)
        if not self.accepts(path):
            self.udp = False
            self.text = build(False)
            path = self.config("yaml", self.text)
            if not self.accepts(path):
                self.text = self.text.replace(f"admin: {self.folder}/{self.name}.sock\n", "")
                path = self.config("yaml", self.text)
        return self.run(f"{self.binary} run -c {path}")

    def accepts(self, path):
        return subprocess.run([self.binary, "check", "-c", path], capture_output=True).returncode == 0

    def serves(self, service):
        return super().serves(service) or self.udp


class Kernel(Weir):
    """weir with `engine: kernel`. Its program looks at every packet of the balancer: like DNAT's rules, it is there only while it is
    measured, and its backend has an address of its own, so that nobody else has connections between the same two ports."""

    kind = name = "kernel"
    child = None

    def start(self):
        listeners, pools = "", ""
        for service, (port, offset) in SERVICES.items():
            protocol = "udp" if service in ("echo", "sink") else "tcp"
            idle = f", udp: {{idle: {UDP_IDLE}}}" if protocol == "udp" else ""
            backend = BACKEND_DNAT if protocol == "tcp" else BACKEND
            listeners += (f"  {service}: {{engine: kernel, protocol: {protocol}, bind: ['{NEAR}:{self.base + offset}'], "
                          f"pool: {service}{idle}}}\n")
            pools += f"  {service}: {{backends: [{{name: s, address: '{backend}:{port}'}}], health: {{type: none}}}}\n"
        # Nothing stays behind when it is told to end.
        self.text = (f"workers: {self.workers}\nadmin: {self.folder}/{self.name}.sock\nlog: {{access: 'off'}}\n"
                     f"shutdown_grace: 0s\nkernel: {{restart_grace: 0s}}\nlisteners:\n{listeners}pools:\n{pools}")
        self.path = self.config("yaml", self.text)

    def enter(self):
        self.child = self.run(f"{self.binary} run -c {self.path}")
        self.hosts.wait_for("client", NEAR, self.base, self.child)

    def leave(self):
        self.child.terminate()
        self.child.wait(10)
        for _ in range(100):
            if not self.pids():
                return
            time.sleep(0.05)
        raise RuntimeError("the helper of the kernel engine does not end")

    def serves(self, service):
        return True


KINDS = {kind.kind: kind for kind in (Direct, Dnat, Bare, Haproxy, Nginx, Weir, Kernel)}


def peer(argument):
    """`NAME=PATH[,VARIABLE=VALUE]...`: a subject for another build of what the name begins with (bare, haproxy, nginx, weir)."""
    found = re.fullmatch(r"((bare|haproxy|nginx|weir)(?:-[\w.]+)?)=([^,]+)((?:,\w+=[^,]*)*)", argument)
    if not found:
        raise ValueError(f"{argument}: NAME=PATH, where NAME is bare, haproxy, nginx or weir, or one of them, a hyphen and more")
    name, kind, path, variables = found.groups()
    path = os.path.abspath(path)
    if not os.access(path, os.X_OK):
        raise ValueError(f"{path} is no program")
    environment = dict(pair.split("=", 1) for pair in variables.split(",")[1:])
    return type(KINDS[kind].__name__, (KINDS[kind],), {"name": name, "binary": path, "environment": environment})


def subjects(names, peers):
    """The classes of those who take part, by name. A peer takes the place of the one that has its name, or comes after the
    first of its kind."""
    chosen = [KINDS[name] for name in names]
    for other in peers:
        same = [ix for ix, one in enumerate(chosen) if one.name == other.name]
        kind = [ix for ix, one in enumerate(chosen) if one.kind == other.kind]
        if same:
            chosen[same[0]] = other
        else:
            chosen.insert(kind[0] + 1 if kind else len(chosen), other)
    return chosen
