//! A corpus as one file: a line an input, its name and then its bytes, escaped as in a Rust string. Names are of inputs
//! that somebody wrote; what fuzzing found has `-`.
//!
//! `pack unpack FILE DIRECTORY` writes a file for each input, `pack pack FILE DIRECTORY` the other way (scripts/fuzz does
//! both), `pack line NAME INPUT` prints the line of one input. tests/corpus.rs reads the lines as they are.

#![allow(dead_code)] // The program uses one half, the test the other.

use std::path::Path;

/// The inputs of a packed corpus, line by line: name (none if it was found) and bytes.
pub fn read(file: &Path) -> Vec<(Option<String>, Vec<u8>)> {
    let text = std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let input = |(ix, line): (usize, &str)| {
        let understood = line
            .split_once(' ')
            .and_then(|(name, escaped)| Some((name, unescape(escaped)?)));
        let (name, bytes) = understood.unwrap_or_else(|| panic!("{}:{}: not understood", file.display(), ix + 1));
        ((name != "-").then(|| name.to_string()), bytes)
    };
    text.lines().enumerate().map(input).collect()
}

/// The line of an input.
pub fn line(name: Option<&str>, bytes: &[u8]) -> String {
    format!("{} {}\n", name.unwrap_or("-"), bytes.escape_ascii())
}

/// Undoes [`slice::escape_ascii`].
pub fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut found = Vec::new();
    while let Some(byte) = bytes.next() {
        found.push(match byte {
            b'\\' => match bytes.next()? {
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'x' => {
                    let mut digit = || (bytes.next()? as char).to_digit(16);
                    (digit()? * 16 + digit()?) as u8
                }
                itself @ (b'\\' | b'\'' | b'"') => itself,
                _ => return None,
            },
            b' '..=b'~' => byte,
            _ => return None,
        });
    }
    Some(found)
}

/// Names that libFuzzer gives: the SHA-1 of the bytes.
fn found(name: &str) -> bool {
    name.len() == 40 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn pack(file: &Path, directory: &Path) -> std::io::Result<()> {
    let mut inputs = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().into_string().expect("a name in UTF-8");
        inputs.push(((found(&name), name), std::fs::read(entry.path())?));
    }
    // Those with a name first, then the short ones: what is new moves few lines.
    inputs.sort_by(|((a_found, a), a_bytes), ((b_found, b), b_bytes)| {
        let by_bytes = || (a_bytes.len(), a_bytes).cmp(&(b_bytes.len(), b_bytes));
        a_found
            .cmp(b_found)
            .then_with(|| if *a_found { by_bytes() } else { a.cmp(b) })
    });
    let lines = inputs
        .iter()
        .map(|((found, name), bytes)| line((!found).then_some(name), bytes));
    std::fs::write(file, lines.collect::<String>())
}

/// See the head of this file.
pub fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["pack", file, directory] => pack(file.as_ref(), directory.as_ref()).unwrap(),
        ["unpack", file, directory] => {
            for (ix, (name, bytes)) in read(file.as_ref()).into_iter().enumerate() {
                // libFuzzer names by content, and so does `pack` tell what was found: any 40 digits do.
                let name = name.unwrap_or_else(|| format!("{ix:040x}"));
                std::fs::write(Path::new(directory).join(name), bytes).unwrap();
            }
        }
        ["line", name, input] => print!("{}", line(Some(name), &std::fs::read(input).unwrap())),
        _ => panic!("pack pack|unpack FILE DIRECTORY"),
    }
}
