"""The soak run; see scripts/soak. Standard library only, one thread a role, everything on loopback."""

import json
import os
import random
import re
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time

WEIR, SECONDS = sys.argv[1], int(sys.argv[2])
SEED = int(os.environ.get("WEIR_SEED", "1"))
STOP = threading.Event()
done, failed = {}, {}
lock = threading.Lock()


def count(table, what):
    with lock:
        table[what] = table.get(what, 0) + 1


class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        try:
            while data := self.request.recv(65536):
                self.request.sendall(data)
        except OSError:
            pass


class Backend(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 1024

    def handle_error(self, *_):
        pass


def churn(port):
    """A backend that serves for a while and is gone for a while."""
    rng = random.Random(f"{SEED} {port}")
    while not STOP.is_set():
        server = Backend(("127.0.0.1", port), Echo)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        STOP.wait(rng.uniform(5, 20))
        server.shutdown()
        server.server_close()
        thread.join()
        STOP.wait(rng.uniform(0.5, 3))


def steady(port):
    server = Backend(("127.0.0.1", port), Echo)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    STOP.wait()
    server.shutdown()
    server.server_close()


def tcp_client(number, port):
    rng = random.Random(f"{SEED} client {number}")
    while not STOP.is_set():
        kind = rng.choice(["short"] * 6 + ["bulk", "half", "reset", "idle"])
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=20) as s:
                size = rng.randrange(1, 2000) if kind != "bulk" else rng.randrange(1 << 18, 1 << 21)
                data = rng.randbytes(size)
                if kind == "reset":
                    s.sendall(data)
                    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    count(done, kind)
                    continue
                if kind == "idle":
                    STOP.wait(rng.uniform(0.5, 3))
                sender = threading.Thread(target=send, args=(s, data, kind == "half"))
                sender.start()
                got = bytearray()
                while len(got) < size and (part := s.recv(65536)):
                    got += part
                sender.join()
                # A backend that goes away may cut an answer short, but never alter one.
                if got != data[: len(got)]:
                    count(failed, "altered bytes")
                count(done if len(got) == size else failed, kind)
        except TimeoutError:
            count(failed, "silence")
        except OSError:
            count(failed, kind)
        STOP.wait(rng.uniform(0, 0.02))


def send(s, data, end):
    try:
        s.sendall(data)
        if end:
            s.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def udp_server(port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind(("127.0.0.1", port))
        s.settimeout(0.2)
        while not STOP.is_set():
            try:
                data, peer = s.recvfrom(65536)
                s.sendto(data, peer)
            except OSError:
                pass


def udp_client(number, port):
    rng = random.Random(f"{SEED} udp {number}")
    while not STOP.is_set():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.connect(("127.0.0.1", port))
            s.settimeout(2)
            for _ in range(rng.randrange(1, 50)):
                data = rng.randbytes(rng.randrange(1, 1200))
                try:
                    s.send(data)
                    count(done if s.recv(65536) == data else failed, "datagram")
                except OSError:
                    count(failed, "datagram")
                STOP.wait(rng.uniform(0, 0.01))


def free_ports(n):
    sockets = [socket.socket() for _ in range(n)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def figures(pid, web):
    status = open(f"/proc/{pid}/status").read()
    links = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            links.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
        except OSError:
            pass
    states = subprocess.run(["ss", "-Htanp"], capture_output=True, text=True).stdout
    mine = [line.split()[0] for line in states.splitlines() if f"pid={pid}," in line]
    return {
        "descriptors": len(links),
        "pipes": sum(link.startswith("pipe:") for link in links),
        "RssAnon KiB": int(re.search(r"RssAnon:\s+(\d+)", status)[1]),
        "threads": int(re.search(r"Threads:\s+(\d+)", status)[1]),
        **{f"sockets {state}": mine.count(state) for state in sorted(set(mine))},
    }


def main():
    directory = tempfile.mkdtemp(prefix="weir-soak-")
    file, admin = f"{directory}/weir.yaml", f"{directory}/admin.sock"
    web, dns, *backends, udp = free_ports(7)

    def write(generation):
        # Every generation differs: weights move, a listener comes and goes.
        weights = [1 + (generation + ix) % 3 for ix in range(len(backends))]
        listed = ", ".join(
            f"{{name: b{ix}, address: '127.0.0.1:{port}', weight: {weight}}}"
            for ix, (port, weight) in enumerate(zip(backends, weights))
        )
        extra = f"  extra: {{bind: '127.0.0.1:0', pool: web}}\n" if generation % 2 else ""
        text = (
            f"admin: {admin}\nlog: {{level: warn, access: {directory}/access.log}}\nlisteners:\n"
            f"  web: {{bind: '127.0.0.1:{web}', pool: web}}\n{extra}"
            f"  dns: {{protocol: udp, bind: '127.0.0.1:{dns}', pool: dns, udp: {{idle: 2s}}}}\n"
            f"pools:\n  web: {{backends: [{listed}], health: {{interval: 500ms, timeout: 300ms}}}}\n"
            f"  dns: {{backends: '127.0.0.1:{udp}', health: {{type: none}}}}\n"
        )
        with open(file + ".new", "w") as f:
            f.write(text)
        os.rename(file + ".new", file)

    write(0)
    errors = open(f"{directory}/errors.log", "wb")
    weir = subprocess.Popen([WEIR, "run", "-c", file], stderr=errors)

    def ask(question):
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(admin)
            s.sendall(json.dumps(question).encode() + b"\n")
            return json.loads(s.makefile().readline())

    deadline = time.time() + 10
    while True:
        try:
            ask({"command": "health"})
            break
        except OSError:
            assert time.time() < deadline and weir.poll() is None, "weir does not start"
            time.sleep(0.05)

    roles = [threading.Thread(target=churn, args=(port,)) for port in backends[:3]]
    roles += [threading.Thread(target=steady, args=(port,)) for port in backends[3:]]
    roles += [threading.Thread(target=udp_server, args=(udp,))]
    roles += [threading.Thread(target=tcp_client, args=(n, web)) for n in range(24)]
    roles += [threading.Thread(target=udp_client, args=(n, dns)) for n in range(8)]
    for role in roles:
        role.start()

    # The baseline is taken in the middle of the warm-up's end: pools of pipes, tables and allocator have their size.
    warm = min(60, SECONDS // 3)
    start, generation, rows = time.time(), 0, []
    next_reload, next_row = start + 10, start + warm
    while time.time() < start + SECONDS and weir.poll() is None:
        time.sleep(0.2)
        now = time.time()
        if now >= next_reload:
            generation += 1
            write(generation)
            weir.send_signal(signal.SIGHUP)
            next_reload += 10
        if now >= next_row:
            rows.append((int(now - start), figures(weir.pid, web)))
            next_row += max(10, (SECONDS - warm) // 10)
    STOP.set()
    for role in roles:
        role.join()
    alive = weir.poll() is None
    problems = [] if alive else [f"weir ended with {weir.returncode}"]
    if alive:
        deadline = time.time() + 30
        while True:
            last = figures(weir.pid, web)
            open_now = last.get("sockets ESTAB", 0) + last.get("sockets CLOSE-WAIT", 0)
            status = ask({"command": "status"})["ok"]
            active = [l["active"] for l in status["listeners"]]
            active += [b["active"] for p in status["pools"] for b in p["backends"]]
            if not any(active) and open_now == 0:
                break
            if time.time() > deadline:
                problems.append(f"not idle: active {active}, {last}")
                break
            time.sleep(0.2)
        rows.append(("after", last))
        # A twelfth reload must not cost more than the first: compare with the warm figures.
        base = rows[0][1]
        if last["RssAnon KiB"] > base["RssAnon KiB"] * 1.25 + 2048:
            problems.append(f"memory grew from {base['RssAnon KiB']} to {last['RssAnon KiB']} KiB")
        if last["threads"] > base["threads"]:
            problems.append("threads grew")
        if status["generation"] != generation + 1:
            problems.append(f"generation {status['generation']}, {generation} reloads")
        weir.send_signal(signal.SIGTERM)
        if weir.wait(40) != 0:
            problems.append(f"ended with {weir.returncode}")
    if failed.get("silence") or failed.get("altered bytes"):
        problems.append("silence or altered bytes")
    text = open(f"{directory}/errors.log", errors="replace").read()
    problems += [line for line in text.splitlines() if "panicked" in line or "refused, the old" in line][:5]

    keys = sorted({key for _, row in rows for key in row})
    print(f"{SECONDS} s, seed {SEED}, {generation} reloads\n")
    print("| second | " + " | ".join(keys) + " |\n|---|" + "---|" * len(keys))
    for second, row in rows:
        print(f"| {second} | " + " | ".join(str(row.get(key, 0)) for key in keys) + " |")
    print(f"\nserved: {json.dumps(done, sort_keys=True)}  ")
    print(f"cut short (backends that went away): {json.dumps(failed, sort_keys=True)}  ")
    print(f"result: {'good' if not problems else 'BAD: ' + '; '.join(problems)}")
    sys.exit(1 if problems else 0)


main()
