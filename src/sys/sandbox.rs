//! What the process gives up once it serves: capabilities, new privileges, files, system calls.
//!
//! # How it works
//!
//! Two steps, because Linux keeps most of this by thread:
//!
//! 1. [`confine`], while there is one thread (every later one inherits it): capabilities beyond [`Needs`] go, from the
//!    bounding set too; `no_new_privs`; a landlock ruleset that leaves the directories of [`Needs`] and what executing
//!    this program again takes.
//! 2. [`seal`], when everything runs: a seccomp filter for all threads at once. Calls that are not on the list answer
//!    ENOSYS, as on a kernel that lacks them, because that is what libraries know how to handle; those that only an
//!    intruder makes ([`HOSTILE`]) end the process.
//!
//! # What is inherited
//!
//! All of it passes through execve(2). So the list holds what starting this program takes too, and an upgrade runs under
//! its predecessor's rules and its own: a version that needs another system call or directory must be restarted rather
//! than upgraded. The keeper and the runner of commands are started before [`confine`]
//! and have rules of their own.
//!
//! # What it never does
//!
//! It never fails a start: an old kernel or a container may refuse any part, and each refusal is a sentence for the log.
//! It looks at no path after [`confine`], so directories that a later configuration names must lie in the old ones. Links
//! are different: [`ways`](super::ways) says which directories the paths lead through, and a release that is switched by
//! a link (`current -> v2`) lies in one of them.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::bpf;
use super::rights::may_connect;
use caps::{CapSet, Capability};
use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus,
    path_beneath_rules,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// What the process still has to be able to do.
#[derive(Debug, Clone, Default)]
pub struct Needs {
    /// Files and directories to read.
    pub read: Vec<PathBuf>,
    /// Directories to create, write and remove files and sockets in.
    pub write: Vec<PathBuf>,
    /// Directories to execute files in, besides the one that this program is in.
    pub run: Vec<PathBuf>,
    /// Unix sockets to connect to.
    pub connect: Vec<PathBuf>,
    /// Large receive buffers for UDP (SO_RCVBUFFORCE takes CAP_NET_ADMIN).
    pub large_buffers: bool,
    /// Sockets with addresses that are not this host's, or with marks (CAP_NET_RAW).
    pub foreign_sources: bool,
    /// Events of files (inotify).
    pub file_events: bool,
    /// A thread of real-time priority (CAP_SYS_NICE).
    pub real_time: bool,
}

/// The landlock rights that rules are written for; a kernel that knows fewer gets fewer.
const RIGHTS: ABI = ABI::V5;

/// What every process may read, and what executing this program again needs.
const COMMON: [&str; 5] = [
    "/proc",
    "/sys",
    "/etc/ld.so.cache",
    "/etc/ld.so.preload",
    "/etc/localtime",
];
/// Where the dynamic loader and libraries are, and the shell, should the program on disk be a script around it.
const PROGRAMS: [&str; 7] = [
    "/bin",
    "/lib",
    "/lib64",
    "/usr/bin",
    "/usr/lib",
    "/usr/lib64",
    "/nix/store",
];
/// What looking up a name reads; the directories that links among them lead to as well.
pub const NAMES: [&str; 8] = [
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/resolv.conf",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/run/systemd/resolve",
    "/run/resolvconf",
    "/run/NetworkManager",
];
const DEVICES: [&str; 3] = ["/dev/null", "/dev/urandom", "/dev/random"];

/// Landlock is in force.
static RESTRICTED: AtomicBool = AtomicBool::new(false);

/// What to add to a message that ends in EACCES: nothing if landlock is not in force.
pub fn hint(message: &str) -> &'static str {
    match RESTRICTED.load(Relaxed) && message.contains("Permission denied") {
        true => {
            " (the sandbox lets through what the paths led to when the process was started; a directory that is new, or has \
             been put in the place of another, takes a restart)"
        }
        false => "",
    }
}

/// First step; to be taken while this is the only thread. Returns what could not be had, in words.
pub fn confine(needs: &Needs) -> Vec<String> {
    let mut refused = Vec::new();
    let mut note = |what: &str, outcome: Result<(), String>| {
        if let Err(why) = outcome {
            refused.push(format!("{what}: {why}"));
        }
    };
    note("capabilities", drop_capabilities(needs));
    note(
        "no_new_privs",
        nix::sys::prctl::set_no_new_privs().map_err(|error| error.to_string()),
    );
    note("landlock", restrict_files(needs));
    refused
}

/// The capabilities that are kept if the process has them.
fn kept(needs: &Needs) -> HashSet<Capability> {
    let mut kept = HashSet::from([
        // A reload may bind a port below 1024.
        Capability::CAP_NET_BIND_SERVICE,
        // Pipes beyond fs.pipe-user-pages-soft.
        Capability::CAP_SYS_RESOURCE,
    ]);
    if needs.large_buffers {
        kept.insert(Capability::CAP_NET_ADMIN);
    }
    if needs.foreign_sources {
        // Of what it allows besides, raw and packet sockets, the filter lets nothing through: see `families`.
        kept.insert(Capability::CAP_NET_RAW);
    }
    if needs.real_time {
        kept.insert(Capability::CAP_SYS_NICE);
    }
    // Root without this one is just another user: it could not read a configuration or write a log that belongs to one, or
    // connect to a socket whose file only its owner may use.
    let foreign = |path: &PathBuf| std::fs::metadata(path).is_ok_and(|found| found.uid() != 0);
    let root = nix::unistd::geteuid().is_root();
    let files = needs.read.iter().chain(&needs.write).any(foreign);
    if root && (files || needs.connect.iter().any(|path| !may_connect(path))) {
        kept.insert(Capability::CAP_DAC_OVERRIDE);
    }
    kept
}

fn drop_capabilities(needs: &Needs) -> Result<(), String> {
    let kept = kept(needs);
    let words = |error: caps::errors::CapsError| error.to_string();
    // What cannot be dropped from the bounding set (that takes CAP_SETPCAP) could only come back by way of a privileged
    // file, which no_new_privs rules out.
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP).map_err(words)? {
        for capability in caps::read(None, CapSet::Bounding).map_err(words)? {
            if !kept.contains(&capability) {
                caps::drop(None, CapSet::Bounding, capability).map_err(words)?;
            }
        }
    }
    // The effective set lies within the permitted one, the ambient one within both others.
    for set in [
        CapSet::Ambient,
        CapSet::Effective,
        CapSet::Inheritable,
        CapSet::Permitted,
    ] {
        let now = caps::read(None, set).map_err(words)?;
        let left = now.intersection(&kept).copied().collect();
        caps::set(None, set, &left).map_err(words)?;
    }
    Ok(())
}

fn restrict_files(needs: &Needs) -> Result<(), String> {
    let restrict = || {
        let program = std::env::current_exe().ok();
        let beside = program.as_deref().and_then(Path::parent);
        let run = AccessFs::from_read(RIGHTS);
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        let device = AccessFs::ReadFile | AccessFs::WriteFile;
        Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(RIGHTS))?
            .create()?
            .add_rules(path_beneath_rules(beside, run))?
            .add_rules(path_beneath_rules(&needs.run, run))?
            .add_rules(path_beneath_rules(PROGRAMS, run))?
            .add_rules(path_beneath_rules(COMMON, read))?
            .add_rules(path_beneath_rules(DEVICES, device))?
            .add_rules(path_beneath_rules(&needs.read, read))?
            .add_rules(path_beneath_rules(
                &needs.write,
                AccessFs::from_all(RIGHTS) & !AccessFs::Execute & !AccessFs::MakeChar & !AccessFs::MakeBlock,
            ))?
            .restrict_self()
    };
    match restrict() {
        Err(error) => Err(error.to_string()),
        Ok(status) if status.ruleset == RulesetStatus::NotEnforced => Err("this kernel does not have it".into()),
        Ok(_) => {
            RESTRICTED.store(true, Relaxed);
            Ok(())
        }
    }
}

/// What happens on a call that is not on the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unlisted {
    /// The call fails with ENOSYS.
    Refuse,
    /// The process ends (SIGSYS): for tests, so that a missing row cannot go unnoticed.
    Kill,
}

/// Second step; every thread that runs, and every later one. The error says in words why it could not be had.
pub fn seal(needs: &Needs, unlisted: Unlisted) -> Result<(), String> {
    for program in programs(needs, unlisted)? {
        install(&program).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// The filters; of what they answer, the strictest counts.
fn programs(needs: &Needs, unlisted: Unlisted) -> Result<Vec<BpfProgram>, String> {
    let listed = |calls: &[i64]| calls.iter().map(|&call| (call, Vec::new())).collect();
    let no_such_call = SeccompAction::Errno(libc::ENOSYS as u32);
    let mut allowed: BTreeMap<i64, Vec<SeccompRule>> = listed(ALLOWED);
    if needs.file_events {
        allowed.append(&mut listed(FILE_EVENTS));
    }
    allowed.insert(libc::SYS_socket, families()?);
    allowed.insert(libc::SYS_clone, vec![no_namespaces()?]);
    allowed.insert(libc::SYS_bpf, bpf::allowed()?);
    let unlisted = match unlisted {
        Unlisted::Refuse => no_such_call.clone(),
        Unlisted::Kill => SeccompAction::KillProcess,
    };
    Ok(vec![
        program(allowed, unlisted, SeccompAction::Allow)?,
        program(listed(ABSENT), SeccompAction::Allow, no_such_call)?,
        program(listed(HOSTILE), SeccompAction::Allow, SeccompAction::KillProcess)?,
        program(
            BTreeMap::from([(libc::SYS_bpf, bpf::refused()?)]),
            SeccompAction::Allow,
            SeccompAction::KillProcess,
        )?,
    ])
}

fn program(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    listed: SeccompAction,
) -> Result<BpfProgram, String> {
    let arch = std::env::consts::ARCH
        .try_into()
        .map_err(|_| "unknown processor".to_string())?;
    SeccompFilter::new(rules, otherwise, listed, arch)
        .and_then(TryInto::try_into)
        .map_err(|error: seccompiler::BackendError| error.to_string())
}

/// socket(2) with these address families; of IP, streams and datagrams, never raw sockets.
fn families() -> Result<Vec<SeccompRule>, String> {
    /// Of the type; the rest are flags (SOCK_TYPE_MASK).
    const TYPE: SeccompCmpOp = SeccompCmpOp::MaskedEq(0xf);
    let family = |family: i32| argument(0, SeccompCmpOp::Eq, family as u64);
    let of_ip = [libc::AF_INET, libc::AF_INET6].into_iter().flat_map(|ip| {
        let kinds = [libc::SOCK_STREAM, libc::SOCK_DGRAM].into_iter();
        kinds.map(move |kind| rule([family(ip)?, argument(1, TYPE, kind as u64)?]))
    });
    let whole = [libc::AF_UNIX, libc::AF_NETLINK]
        .into_iter()
        .map(|whole| rule([family(whole)?]));
    whole.chain(of_ip).collect()
}

/// clone(2) without new namespaces. Its successor clone3 hides its flags in memory, see [`ABSENT`].
fn no_namespaces() -> Result<SeccompRule, String> {
    let namespaces = libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET;
    rule([argument(0, SeccompCmpOp::MaskedEq(namespaces as u64), 0)?])
}

fn rule<const N: usize>(conditions: [SeccompCondition; N]) -> Result<SeccompRule, String> {
    SeccompRule::new(conditions.into()).map_err(|error| error.to_string())
}

fn argument(number: u8, op: SeccompCmpOp, value: u64) -> Result<SeccompCondition, String> {
    SeccompCondition::new(number, SeccompCmpArgLen::Dword, op, value).map_err(|error| error.to_string())
}

fn install(program: &BpfProgram) -> io::Result<()> {
    // LOG: refusals appear in the audit log. SPEC_ALLOW: kernels before 5.16 would slow down every process with a filter.
    let flags = libc::SECCOMP_FILTER_FLAG_TSYNC | libc::SECCOMP_FILTER_FLAG_LOG | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_ptr().cast::<libc::sock_filter>().cast_mut(),
    };
    // SAFETY: `filter` points at `len` instructions, whose layout is the kernel's (`repr(C)`, the same four fields), and
    // both outlive the call; the kernel copies them and writes nothing.
    let done = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const filter,
        )
    };
    match done {
        0 => Ok(()),
        ..0 => Err(io::Error::last_os_error()),
        thread => Err(io::Error::other(format!("thread {thread} has a filter of its own"))),
    }
}

/// Calls that watch files.
const FILE_EVENTS: &[i64] = &[
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
];

/// Calls that libraries must believe to be missing, so that they use ones that can be judged.
const ABSENT: &[i64] = &[libc::SYS_clone3];

/// Calls that neither this program nor its libraries make.
const HOSTILE: &[i64] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_chroot,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_io_uring_setup,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_mount,
    libc::SYS_move_mount,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_perf_event_open,
    libc::SYS_pivot_root,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setns,
    libc::SYS_swapon,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
];

/// Calls that are made while serving, reloading, upgrading and ending, and by the C library, the dynamic loader and the
/// service manager's protocol on their behalf. `socket` and `clone` are judged by argument besides.
const ALLOWED: &[i64] = &[
    // Data plane.
    libc::SYS_accept4,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_connect,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_getsockopt,
    libc::SYS_ioctl,
    libc::SYS_pipe2,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_splice,
    libc::SYS_tee,
    libc::SYS_write,
    libc::SYS_writev,
    // Control plane: sockets, timers, descriptors.
    libc::SYS_bind,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fcntl,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_listen,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_socketpair,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_gettime,
    libc::SYS_timerfd_settime,
    // Files: configuration, logs, sockets, /proc. Landlock says which.
    libc::SYS_chdir,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fchdir,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_linkat,
    libc::SYS_lseek,
    libc::SYS_mkdirat,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_readlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_symlinkat,
    libc::SYS_umask,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    // Memory, threads, clocks.
    libc::SYS_brk,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_clone,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_get_robust_list,
    libc::SYS_getcpu,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mincore,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_mlockall,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munlock,
    libc::SYS_munlockall,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_setscheduler,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    // Signals, processes, identity: signal handling, the upgrade, starting up again.
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_execve,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getgroups,
    libc::SYS_getpgid,
    libc::SYS_getpriority,
    libc::SYS_getresgid,
    libc::SYS_getresuid,
    libc::SYS_getrusage,
    libc::SYS_getsid,
    libc::SYS_getuid,
    libc::SYS_kill,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_restrict_self,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_prctl,
    libc::SYS_prlimit64,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_seccomp,
    libc::SYS_setpgid,
    libc::SYS_setpriority,
    libc::SYS_setsid,
    libc::SYS_sigaltstack,
    libc::SYS_signalfd4,
    libc::SYS_tgkill,
    libc::SYS_tkill,
    libc::SYS_wait4,
    libc::SYS_waitid,
    // clone3 must get past this list to be answered by ABSENT.
    libc::SYS_clone3,
    // Calls that later architectures do without.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_arch_prctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_dup2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_getpgrp,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_getrlimit,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_pipe,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rmdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_select,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_setrlimit,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_time,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
];

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    /// The call that the process of [`sealed`] makes.
    const CALL: &str = "WEIR_TEST_SANDBOX_CALL";

    /// What makes a call in a process that has been sealed: `Ok(errno)` or the signal that ended it.
    fn sealed(call: &str) -> Result<i32, i32> {
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "sys::sandbox::tests::in_a_sealed_process", "--nocapture"])
            .env(CALL, call)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .status()
            .unwrap();
        status.code().ok_or(status.signal().unwrap_or(0))
    }

    /// Not a test by itself: the other half of [`sealed`].
    #[test]
    fn in_a_sealed_process() {
        let Ok(call) = std::env::var(CALL) else {
            return;
        };
        let dir = tempfile::tempdir().unwrap();
        let needs = Needs {
            read: vec!["/etc/passwd".into()],
            file_events: call.contains("with events"),
            write: vec![dir.path().into()],
            ..Needs::default()
        };
        // Landlock and capabilities go by thread: this one.
        assert_eq!(confine(&needs), Vec::<String>::new());
        let strict = call.starts_with("strict ");
        let mode = if strict { Unlisted::Kill } else { Unlisted::Refuse };
        seal(&needs, mode).unwrap();
        let errno = |outcome: io::Result<()>| outcome.map_or_else(|error| error.raw_os_error().unwrap_or(1), |()| 0);
        let system_call = |number, first: i64| {
            // SAFETY: none of the calls made here with these arguments touches memory.
            let done = unsafe { libc::syscall(number, first, 0, 0, 0, 0) };
            if done < 0 {
                errno(Err(io::Error::last_os_error()))
            } else {
                0
            }
        };
        let socket = |family| system_call(libc::SYS_socket, i64::from(family));
        let code = match call.trim_start_matches("strict ") {
            "getpid" => system_call(libc::SYS_getpid, 0),
            "unshare" => system_call(libc::SYS_unshare, i64::from(libc::CLONE_NEWNET)),
            "ptrace" => system_call(libc::SYS_ptrace, 0),
            "clone_newnet" => system_call(libc::SYS_clone, i64::from(libc::CLONE_NEWNET | libc::SIGCHLD)),
            "clone3" => system_call(libc::SYS_clone3, 0),
            "packet_socket" => socket(libc::AF_PACKET),
            kind @ ("raw_socket" | "stream_socket") => {
                let kind = match kind {
                    "raw_socket" => libc::SOCK_RAW,
                    _ => libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
                };
                // SAFETY: no memory is passed.
                let done = unsafe { libc::socket(libc::AF_INET, kind, libc::IPPROTO_TCP) };
                if done < 0 {
                    errno(Err(io::Error::last_os_error()))
                } else {
                    0
                }
            }
            "inotify" | "inotify with events" => system_call(libc::SYS_inotify_init1, 0),
            "vmsplice" => system_call(libc::SYS_vmsplice, -1),
            "read_allowed" => errno(std::fs::read("/etc/passwd").map(drop)),
            "read_other" => errno(std::fs::read("/etc/hosts").map(drop)),
            "write_allowed" => errno(std::fs::write(dir.path().join("log"), "x")),
            "write_other" => errno(std::fs::write("/tmp/weir-test-sandbox", "x")),
            "thread" => errno(std::thread::Builder::new().spawn(|| ()).map(drop)),
            "child" => errno(Command::new("/proc/self/exe").arg("--help").output().map(drop)),
            "capabilities" => {
                let held = caps::read(None, CapSet::Permitted).unwrap();
                held.difference(&kept(&Needs::default())).count() as i32
            }
            other => panic!("{other}"),
        };
        std::process::exit(code);
    }

    #[test]
    fn what_a_sealed_process_can_and_cannot_do() {
        let rows = [
            ("getpid", Ok(0)),
            ("thread", Ok(0)),
            ("child", Ok(0)),
            ("clone3", Ok(libc::ENOSYS)),
            ("clone_newnet", Ok(libc::ENOSYS)),
            ("packet_socket", Ok(libc::ENOSYS)),
            ("raw_socket", Ok(libc::ENOSYS)),
            ("stream_socket", Ok(0)),
            ("vmsplice", Ok(libc::ENOSYS)),
            ("inotify", Ok(libc::ENOSYS)),
            ("inotify with events", Ok(0)),
            ("unshare", Err(libc::SIGSYS)),
            ("ptrace", Err(libc::SIGSYS)),
            ("read_allowed", Ok(0)),
            ("read_other", Ok(libc::EACCES)),
            ("write_allowed", Ok(0)),
            ("write_other", Ok(libc::EACCES)),
            ("capabilities", Ok(0)),
            ("strict getpid", Ok(0)),
            ("strict thread", Ok(0)),
            ("strict vmsplice", Err(libc::SIGSYS)),
        ];
        for (call, expected) in rows {
            assert_eq!(sealed(call), expected, "{call}");
        }
    }
}
