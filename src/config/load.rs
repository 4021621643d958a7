//! The file itself; everything behind it is pure.

use std::io::Read;
use std::path::Path;

use super::yaml::{FILE_BYTES_MAX, Place};
use super::{Errors, Loaded, parse};

/// Reads and checks a configuration file. A file that cannot be read is an error like any other.
pub fn load(path: &Path) -> Result<Loaded, Errors> {
    let name = path.display().to_string();
    let bytes = read(path).map_err(|reason| Errors::whole(&name, reason))?;
    parse(&name, &text(&name, bytes)?)
}

/// The bytes of a file as text.
pub(super) fn text(name: &str, bytes: Vec<u8>) -> Result<String, Errors> {
    String::from_utf8(bytes).map_err(|error| {
        let Place { line, column } = place_of(error.as_bytes(), error.utf8_error().valid_up_to());
        let mut errors = Errors::whole(name, "not UTF-8 text from here on: save the file as UTF-8");
        errors.0[0].line = line;
        errors.0[0].column = column;
        errors
    })
}

/// A whole file, up to a bound.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, String> {
    let cannot = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".to_string(),
        _ => format!("cannot be read: {e}"),
    };
    if path.is_dir() {
        return Err("is a directory: name the file in it".into());
    }
    let mut bytes = Vec::new();
    // Devices and pipes have no length to trust, so the bound is on what is read.
    let file = std::fs::File::open(path).map_err(cannot)?;
    file.take(FILE_BYTES_MAX as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(cannot)?;
    match bytes.len() > FILE_BYTES_MAX {
        true => Err(format!("is larger than {FILE_BYTES_MAX} bytes: more is not read")),
        false => Ok(bytes),
    }
}

fn place_of(bytes: &[u8], offset: usize) -> Place {
    let before = String::from_utf8_lossy(&bytes[..offset]);
    let column = before.rsplit('\n').next().map_or(0, |line| line.chars().count());
    Place {
        line: before.matches('\n').count() as u32 + 1,
        column: column as u32 + 1,
    }
}
