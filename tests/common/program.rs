//! Real programs, each in a directory of its own, on a reserved port, killed when dropped.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Port, command, find, run, wait_until};

/// A running server program.
pub struct Program {
    child: Child,
    port: Port,
    dir: tempfile::TempDir,
    /// How it is asked to end; programs with children need a chance to end them.
    farewell: Signal,
}

/// A directory that servers which give up root can still enter.
fn directory() -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("weir-test-").tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

impl Program {
    /// Starts `command` and waits until it listens on `port`.
    #[track_caller]
    pub fn start(mut start: Command, port: Port, dir: tempfile::TempDir) -> Program {
        let output = fs::File::create(dir.path().join("output")).unwrap();
        start
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output);
        let child = start.spawn().unwrap_or_else(|error| panic!("{start:?}: {error}"));
        let mut program = Program {
            child,
            port,
            dir,
            farewell: Signal::SIGKILL,
        };
        wait_until(&format!("{start:?} listens"), || {
            if let Some(status) = program.child.try_wait().unwrap() {
                panic!("{start:?}: {status}: {}", program.output());
            }
            is_listening(program.port.number)
        });
        program
    }

    /// `ADDRESS:PORT`.
    pub fn address(&self) -> String {
        self.port.address().to_string()
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What it has written to standard output and standard error.
    pub fn output(&self) -> String {
        fs::read_to_string(self.dir.path().join("output")).unwrap_or_default()
    }

    /// A web server: `/` answers a few bytes, files are served from and put into `www/`.
    pub fn nginx() -> Program {
        let (dir, port) = (directory(), Port::reserve());
        let path = dir.path().display();
        fs::create_dir(dir.path().join("www")).unwrap();
        let configuration = format!(
            "daemon off; master_process off; pid {path}/pid; error_log stderr warn;
             events {{ worker_connections 4096; }}
             http {{
                 access_log off; client_body_temp_path {path}/body; proxy_temp_path {path}/proxy;
                 fastcgi_temp_path {path}/fastcgi; uwsgi_temp_path {path}/uwsgi; scgi_temp_path {path}/scgi;
                 client_max_body_size 0; sendfile on; tcp_nopush on; root {path}/www;
                 server {{
                     listen 127.0.0.1:{};
                     location = / {{ return 200 'hello'; }}
                     location /put/ {{ dav_methods PUT; create_full_put_path on; }}
                 }}
             }}",
            port.number
        );
        fs::write(dir.path().join("nginx.conf"), configuration).unwrap();
        let mut start = command(find("nginx").unwrap());
        start.args(["-e", "stderr", "-c", "nginx.conf", "-p"]).arg(dir.path());
        Program::start(start, port, dir)
    }

    pub fn redis() -> Program {
        let (dir, port) = (directory(), Port::reserve());
        let mut start = command(find("redis-server").unwrap());
        start.args(["--bind", "127.0.0.1", "--port", &port.number.to_string()]);
        start
            .args(["--save", "", "--appendonly", "no", "--dir"])
            .arg(dir.path());
        Program::start(start, port, dir)
    }

    /// A database `postgres`, user `postgres`, no password.
    pub fn postgres() -> Program {
        let (dir, port) = (directory(), Port::reserve());
        // It refuses to run as root.
        let as_server = |program: &str| {
            let mut start = command("setpriv");
            if nix::unistd::Uid::effective().is_root() {
                start.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
            }
            start.args(["--pdeathsig", "KILL", "--"]).arg(find(program).unwrap());
            start.current_dir("/").env("LC_ALL", "C");
            start
        };
        let data = dir.path().join("data");
        fs::create_dir(&data).unwrap();
        if nix::unistd::Uid::effective().is_root() {
            let user = nix::unistd::User::from_name("postgres")
                .unwrap()
                .expect("user postgres");
            std::os::unix::fs::chown(&data, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
        }
        let mut initialise = as_server("initdb");
        initialise
            .args(["--no-sync", "--auth=trust", "--username=postgres", "-D"])
            .arg(&data);
        run(&mut initialise);
        let mut start = as_server("postgres");
        start.arg("-D").arg(&data);
        start.args(["-h", "127.0.0.1", "-p", &port.number.to_string(), "-k", "", "-F"]);
        let mut program = Program::start(start, port, dir);
        program.farewell = Signal::SIGQUIT;
        program
    }

    pub fn iperf3() -> Program {
        let (dir, port) = (directory(), Port::reserve());
        let mut start = command(find("iperf3").unwrap());
        start.args(["--server", "--bind", "127.0.0.1", "--port", &port.number.to_string()]);
        Program::start(start, port, dir)
    }

    /// Serves each connection with a program: the connection's bytes are its standard input and output.
    pub fn socat(serve: &str) -> Program {
        Program::socat_to(&format!("EXEC:{serve}"))
    }

    /// Sends the file `out` and ends its stream, while what it gets is appended to the file `into`: another connection, of
    /// a probe, leaves that as it is.
    pub fn socat_files(out: &str, into: &str) -> Program {
        Program::socat_to(&format!("OPEN:{out},rdonly!!OPEN:{into},wronly,creat,append"))
    }

    fn socat_to(other: &str) -> Program {
        let (dir, port) = (directory(), Port::reserve());
        let mut start = command(find("socat").unwrap());
        start.current_dir(dir.path()).args(["-t", "20"]);
        start
            .arg(format!("TCP-LISTEN:{},bind=127.0.0.1,reuseaddr,fork", port.number))
            .arg(other);
        Program::start(start, port, dir)
    }
}

/// Whether somebody listens on a port. Asked of the kernel, because not every server takes a connection without a word
/// lightly: iperf3 serves one client at a time.
fn is_listening(port: u16) -> bool {
    const LISTEN: &str = "0A";
    let port = format!(":{port:04X}");
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    // `sl local remote state ...`
    table.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.len() > 3 && fields[1].ends_with(&port) && fields[3] == LISTEN
    })
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.child.id() as i32), self.farewell);
        let _ = self.child.wait();
        if std::thread::panicking() {
            println!("the server on {} wrote:\n{}", self.port.address(), self.output());
        }
    }
}
