//! Enums whose values are words: of logs, metric labels, documents and tests alike.

/// Declares an enum from its words, which must differ: `ALL` in order of declaration (`ALL[x as usize] == x`), `as_str`, and
/// the same word by `Display`.
macro_rules! words {
    ($(#[$meta:meta])* $vis:vis enum $Name:ident { $($(#[$doc:meta])* $Variant:ident = $word:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        $vis enum $Name { $($(#[$doc])* $Variant,)* }

        impl $Name {
            /// All of them, in order of declaration (`ALL[x as usize] == x`).
            pub const ALL: &[$Name] = &[$($Name::$Variant,)*];

            /// The word in logs, metrics and documents.
            pub const fn as_str(self) -> &'static str {
                match self { $($Name::$Variant => $word,)* }
            }
        }

        impl std::fmt::Display for $Name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        const _: () = assert!($crate::base::words::differ(&[$($word,)*]), "two values with one word");
    };
}

pub(crate) use words;

/// Whether no word stands there twice.
pub const fn differ(words: &[&str]) -> bool {
    let mut a = 0;
    while a < words.len() {
        let mut b = a + 1;
        while b < words.len() {
            if equal(words[a].as_bytes(), words[b].as_bytes()) {
                return false;
            }
            b += 1;
        }
        a += 1;
    }
    true
}

const fn equal(a: &[u8], b: &[u8]) -> bool {
    let mut at = 0;
    while at < a.len() && at < b.len() {
        if a[at] != b[at] {
            return false;
        }
        at += 1;
    }
    a.len() == b.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    words! {
        /// Of the tests.
        enum Signal {
            /// Stop.
            Red = "red",
            /// Go.
            Green = "green",
        }
    }

    #[test]
    fn words_and_values_go_together() {
        for (ix, &signal) in Signal::ALL.iter().enumerate() {
            assert_eq!(signal as usize, ix);
            assert_eq!(signal.as_str(), ["red", "green"][ix]);
            assert_eq!(format!("{signal:>6}"), ["   red", " green"][ix]);
        }
    }

    #[test]
    fn a_word_that_stands_there_twice_is_found() {
        for (words, wanted) in [
            (&["a", "b", "ab"][..], true),
            (&["a", "b", "a"], false),
            (&["", ""], false),
            (&[], true),
        ] {
            assert_eq!(differ(words), wanted, "{words:?}");
        }
    }
}
