//! Files that others must not read.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Shortest secret; what fewer bytes protect can be tried out.
pub const SECRET_MIN: usize = 16;

/// Most bytes of a secret.
pub const SECRET_MAX: u64 = 4096;

/// Reads a shared secret; white space at its end does not count.
///
/// # Errors
/// In words, with the remedy: the file cannot be read, is not a regular file, others may read or write it (mode, or an owner
/// that is neither root nor this user), or it is shorter than [`SECRET_MIN`] or longer than [`SECRET_MAX`] bytes.
pub fn read(path: &Path) -> Result<Vec<u8>, String> {
    let mut secret = read_private(path, SECRET_MAX)?;
    let end = secret.trim_ascii_end().len();
    secret.truncate(end);
    if secret.len() < SECRET_MIN {
        let name = path.display();
        return Err(format!(
            "{name}: shorter than {SECRET_MIN} bytes; make one with: head -c 32 /dev/urandom | base64 > {name}"
        ));
    }
    Ok(secret)
}

/// Reads a file that only its owner may know: a password, a private key.
///
/// # Errors
/// In words, with the remedy: as [`read`], without a shortest length.
pub fn read_private(path: &Path, bytes_max: u64) -> Result<Vec<u8>, String> {
    let name = path.display();
    let io = |e: io::Error| format!("{name}: {e}");
    // What is checked must be what is read: one open file, not two looks at a name.
    let mut file = File::open(path).map_err(io)?;
    let meta = file.metadata().map_err(io)?;
    if !meta.is_file() {
        return Err(format!("{name}: not a regular file"));
    }
    let mode = meta.mode() & 0o777;
    if mode & 0o037 != 0 {
        return Err(format!(
            "{name}: others may read or change it (mode {mode:03o}); chmod 600 {name}"
        ));
    }
    let me = nix::unistd::geteuid().as_raw();
    if meta.uid() != 0 && meta.uid() != me {
        return Err(format!(
            "{name}: belongs to user {}; it must belong to root or to the user that weir runs as",
            meta.uid()
        ));
    }
    if meta.len() > bytes_max {
        return Err(format!("{name}: longer than {bytes_max} bytes"));
    }
    let mut secret = Vec::new();
    file.read_to_end(&mut secret).map_err(io)?;
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let rows: [(&str, u32, Option<&str>); 7] = [
            ("0123456789abcdef\n", 0o600, None),
            ("0123456789abcdef", 0o400, None),
            // A group of its own may read it: how it is shared with a service user.
            ("0123456789abcdef", 0o640, None),
            ("0123456789abcdef", 0o644, Some("others may read")),
            ("0123456789abcdef", 0o660, Some("others may read")),
            ("0123456789abcdef", 0o602, Some("others may read")),
            ("0123456789abcde\n\n\n", 0o600, Some("shorter")),
        ];
        for (content, mode, want) in rows {
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            match (read(&path), want) {
                (Ok(secret), None) => assert_eq!(secret, b"0123456789abcdef"),
                (Err(why), Some(want)) => assert!(why.contains(want), "{why}"),
                (got, _) => panic!("{mode:o} {content:?}: {got:?}"),
            }
        }
        assert!(read(dir.path()).unwrap_err().contains("not a regular file"));
        assert!(read(&dir.path().join("none")).is_err());
    }
}
