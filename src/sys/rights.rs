//! What a process may do: capabilities of small processes, which keep what their one task takes, and what takes one.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use caps::{CapSet, Capability, CapsHashSet};

/// For a process that does one thing only: gives every capability up but these. Returns the names of those that it lacks.
pub fn keep_only(needed: &[Capability]) -> Result<String, String> {
    let words = |error: caps::errors::CapsError| error.to_string();
    let have = caps::read(None, CapSet::Permitted).map_err(words)?;
    let kept: CapsHashSet = needed.iter().copied().filter(|c| have.contains(c)).collect();
    for set in [CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        let wanted = match set {
            CapSet::Inheritable => CapsHashSet::new(),
            _ => kept.clone(),
        };
        caps::set(None, set, &wanted).map_err(words)?;
    }
    let _ = nix::sys::prctl::set_no_new_privs();
    let missing: Vec<String> = needed
        .iter()
        .filter(|c| !kept.contains(c))
        .map(ToString::to_string)
        .collect();
    Ok(missing.join(" and "))
}

/// Whether root without capabilities may certainly connect to a unix socket. One that is not there yet, because its server
/// starts later, may come to belong to anybody.
pub(super) fn may_connect(path: &Path) -> bool {
    let allows = |path: &Path, bit: u32| {
        std::fs::metadata(path).is_ok_and(|found| {
            let shift = match (found.uid(), found.gid()) {
                (0, _) => 6,
                (_, 0) => 3,
                _ => 0,
            };
            found.mode() >> shift & bit != 0
        })
    };
    const WRITE: u32 = 2;
    const SEARCH: u32 = 1;
    let Ok(real) = path.canonicalize() else {
        return false;
    };
    allows(&real, WRITE) && real.ancestors().skip(1).all(|directory| allows(directory, SEARCH))
}
