//! The directories that a path leads through, for rules that are made once and have to hold when a link on the way is
//! switched to another release.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::path::{Component, Path, PathBuf};

use crate::balance::identity;

/// Links on the way at most (the kernel's limit).
const LINKS_MAX: usize = 40;

/// Directories that hold much besides: a link in them, or to a directory in them, opens nothing.
const BROAD: &[&str] = &[
    "/",
    "/boot",
    "/dev",
    "/etc",
    "/home",
    "/media",
    "/mnt",
    "/proc",
    "/root",
    "/run",
    "/sys",
    "/tmp",
    "/usr",
    "/usr/local",
    "/var",
    "/var/lib",
    "/var/log",
    "/var/tmp",
];

/// What tells the weir with this admin socket from others of this host, after restarts too: a service manager may remove the
/// socket's directory and make it anew. A relative path, or another way to it, means the same socket.
pub fn instance(admin: &Path) -> u64 {
    let whole = std::path::absolute(admin).unwrap_or_else(|_| admin.to_path_buf());
    let real = whole.ancestors().skip(1).find_map(|directory| {
        let real = directory.canonicalize().ok()?;
        Some(real.join(whole.strip_prefix(directory).ok()?))
    });
    identity("", &real.unwrap_or(whole).to_string_lossy())
}

/// Where the file at `path` is and, for each symbolic link on the way, where the link is and where its target is: whoever
/// switches it (`current -> v2`) will most likely name another directory beside the target. A directory that is not there
/// ends the walk; what is known until then is returned.
pub fn directories(path: &Path) -> Vec<PathBuf> {
    let mut found = vec![parent(path)];
    if let Ok(mut on_the_way) = links(path) {
        on_the_way.retain(|directory| !BROAD.iter().any(|broad| directory == Path::new(broad)));
        found.append(&mut on_the_way);
    }
    found.extend(path.canonicalize().ok().map(|real| parent(&real)));
    found.sort();
    found.dedup();
    found
}

/// The same for a file that may come later: in place of a directory that is not there yet, the first above it that is, unless
/// that one holds much besides.
pub fn awaited(path: &Path) -> Vec<PathBuf> {
    let stands = |directory: PathBuf| {
        let found = directory.ancestors().find(|above| above.is_dir())?;
        let narrow = found == directory || !BROAD.iter().any(|broad| found == Path::new(broad));
        narrow.then(|| found.to_path_buf())
    };
    directories(path).into_iter().filter_map(stands).collect()
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// The directories of all links on the way, and those of their targets.
fn links(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    // Resolved, without a link or `..` in it.
    let mut here = match path.is_absolute() {
        true => PathBuf::from("/"),
        false => std::env::current_dir()?.canonicalize()?,
    };
    let words = |path: &Path| -> Vec<OsString> { path.components().map(|part| part.as_os_str().to_owned()).collect() };
    let mut ahead: VecDeque<OsString> = words(path).into();
    let mut followed = 0;
    while let Some(word) = ahead.pop_front() {
        match Path::new(&word).components().next() {
            None | Some(Component::CurDir | Component::Prefix(_)) => continue,
            Some(Component::RootDir) => {
                here = PathBuf::from("/");
                continue;
            }
            // Of the directory that a link has led to, as the kernel does it.
            Some(Component::ParentDir) => {
                here.pop();
                continue;
            }
            Some(Component::Normal(_)) => {}
        }
        let next = here.join(&word);
        let Ok(target) = std::fs::read_link(&next) else {
            here = next;
            continue;
        };
        followed += 1;
        if followed > LINKS_MAX {
            break;
        }
        found.push(here.clone());
        found.extend(next.canonicalize().ok().map(|real| parent(&real)));
        for word in words(&target).into_iter().rev() {
            ahead.push_front(word);
        }
    }
    Ok(found)
}

/// Where a program is that was started under this name: the name itself if it is a path, else where PATH leads to.
pub fn program(name: &Path) -> Option<PathBuf> {
    if name.components().count() > 1 || name.is_absolute() {
        return Some(name.to_path_buf());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// Breaks tried: `..` taken off the text of the path; only the last link followed.
    #[test]
    fn every_link_on_the_way_opens_its_own_directory_and_its_targets() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        for directory in ["app/v1/conf", "etc", "shared/data", "alternatives"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        for file in ["app/v1/conf/weir.yaml", "app/v1/weir", "shared/data/secret"] {
            fs::write(root.join(file), "").unwrap();
        }
        for (link, target) in [
            ("app/current", "v1"),
            ("etc/weir", "../app/current/conf"),
            ("app/v1/conf/secret", "../../../shared/data/secret"),
            ("alternatives/weir", "../app/current/weir"),
            ("usr", "alternatives"),
        ] {
            symlink(target, root.join(link)).unwrap();
        }
        #[rustfmt::skip]
        let rows: [(&str, &[&str]); 6] = [
            ("shared/data/secret",          &["shared/data"]),
            ("app/current/weir",            &["app", "app/current", "app/v1"]),
            ("app/current/../v1/weir",      &["app", "app/current/../v1", "app/v1"]),
            ("etc/weir/weir.yaml",          &["app", "app/v1", "app/v1/conf", "etc", "etc/weir"]),
            ("etc/weir/secret",             &["app", "app/v1", "app/v1/conf", "etc", "etc/weir", "shared/data"]),
            ("usr/weir",                    &["", "alternatives", "app", "app/v1", "usr"]),
        ];
        for (path, expected) in rows {
            let mut expected: Vec<PathBuf> = expected.iter().map(|directory| root.join(directory)).collect();
            expected
                .iter_mut()
                .for_each(|directory| *directory = directory.components().collect());
            expected.sort();
            let found: Vec<PathBuf> = directories(&root.join(path))
                .iter()
                .map(|d| d.components().collect())
                .collect();
            assert_eq!(found, expected, "{path}");
        }
    }

    #[test]
    fn a_link_at_a_broad_place_opens_nothing_broad() {
        // /proc/self is a link in /proc to a directory in /proc.
        let found = directories(Path::new("/proc/self/status"));
        assert!(
            !found.contains(&PathBuf::from("/proc")) && !found.contains(&PathBuf::from("/")),
            "{found:?}"
        );
        assert_eq!(directories(Path::new("weir.yaml"))[0], PathBuf::from("."));
    }

    #[test]
    fn what_comes_later_is_awaited_above() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        fs::create_dir(root.join("here")).unwrap();
        #[rustfmt::skip]
        let rows: [(PathBuf, Vec<PathBuf>); 4] = [
            (root.join("here/file"),         vec![root.join("here")]),
            (root.join("later/deep/file"),   vec![root.clone()]),
            ("/etc/weir-is-not-there/file".into(), vec![]),
            ("/etc/file".into(),             vec!["/etc".into()]),
        ];
        for (path, expected) in rows {
            assert_eq!(awaited(&path), expected, "{path:?}");
        }
    }

    #[test]
    fn links_in_a_circle_end() {
        let temp = tempfile::tempdir().unwrap();
        symlink("b", temp.path().join("a")).unwrap();
        symlink("a", temp.path().join("b")).unwrap();
        assert!(directories(&temp.path().join("a/file")).contains(&temp.path().join("a")));
    }
}
