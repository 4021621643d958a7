//! One list of several: the backends of the configuration, then what each source says, in the order of the configuration.
//! Of several that name one address the first counts.

use std::collections::HashMap;

use crate::config::model::{Backend, BackendAddress};

/// Who is in a pool, and who said so.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Merged {
    /// Each address once.
    pub members: Vec<Backend>,
    /// The place in the list of sources, for members that are no backends of the configuration.
    pub origins: HashMap<BackendAddress, Origin>,
}

/// Where a member comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The source with this place.
    Source(usize),
    /// It was there before a reload, and sources that the reload has brought have not said yet who is.
    Held,
}

/// Merges. `held` are members that stay for the time being.
pub fn merge<'a>(fixed: &[Backend], sources: impl IntoIterator<Item = &'a [Backend]>, held: &[Backend]) -> Merged {
    let mut merged = Merged {
        members: fixed.to_vec(),
        origins: HashMap::new(),
    };
    let mut taken: std::collections::HashSet<BackendAddress> = fixed.iter().map(|b| b.address.clone()).collect();
    let sources = sources.into_iter().enumerate();
    let lists = sources.map(|(ix, list)| (Origin::Source(ix), list));
    for (origin, list) in lists.chain([(Origin::Held, held)]) {
        for member in list {
            if taken.insert(member.address.clone()) {
                merged.origins.insert(member.address.clone(), origin);
                merged.members.push(member.clone());
            }
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::super::known::tests::list;
    use super::*;

    /// Seen to fail: held members first, so that what a source says of one does not count.
    #[test]
    fn the_first_that_names_an_address_counts() {
        let (s, held) = (Origin::Source, Origin::Held);
        #[rustfmt::skip]
        let rows: [(&str, &[&str], &str, &str, &[Option<Origin>]); 5] = [
            ("1 2", &[],             "",        "1 2",       &[None, None]),
            ("",    &["1 2", "3"],   "",        "1 2 3",     &[Some(s(0)), Some(s(0)), Some(s(1))]),
            ("1",   &["1*5 2", "2*7 3b"], "",   "1 2 3b",    &[None, Some(s(0)), Some(s(1))]),
            ("",    &["1*2", ""],    "1 4",     "1*2 4",     &[Some(s(0)), Some(held)]),
            ("",    &["", ""],       "",        "",          &[]),
        ];
        for (fixed, sources, kept, members, origins) in rows {
            let sources: Vec<Vec<Backend>> = sources.iter().map(|text| list(text)).collect();
            let merged = merge(&list(fixed), sources.iter().map(Vec::as_slice), &list(kept));
            assert_eq!(merged.members, list(members));
            let found: Vec<_> = merged
                .members
                .iter()
                .map(|m| merged.origins.get(&m.address).copied())
                .collect();
            assert_eq!(found, origins, "{members}");
        }
    }
}
