//! The Internet checksum (RFC 1071).

/// Over these parts in a row, each of an even number of bytes; 0 if what they contain is a right checksum.
pub fn internet(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.as_chunks::<2>().0);
    let mut sum: u32 = words.map(|word| u32::from(u16::from_be_bytes(*word))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 1071, section 3, and a sum that carries twice.
    #[test]
    fn words_are_summed_over_all_parts() {
        assert_eq!(
            internet(&[&[0x00, 0x01, 0xf2, 0x03], &[0xf4, 0xf5, 0xf6, 0xf7]]),
            !0xddf2
        );
        assert_eq!(internet(&[&[0xff, 0xff], &[0xff, 0xff, 0x00, 0x01]]), !1);
        assert_eq!(internet(&[]), 0xffff);
    }
}
