//! Local ports for mode `nat`: those that sockets of this host do not choose for themselves, so that no answer can be for both. Where
//! sockets leave next to nothing, those that they would leave by the kernel's own default: `weir check` warns of that.
//! Pure, but for [`here`].

use std::fs;
use std::ops::RangeInclusive;

use super::layout::{PORT_RANGES, PortRange, Ports};

/// The kernel's own default.
const LOCAL: RangeInclusive<u16> = 32_768..=60_999;

/// Fewer than these are too few for what connections a backend may have.
pub const ENOUGH: usize = 4096;

/// Ports below are for services.
const FIRST: u16 = 1024;

/// As `net.ipv4.ip_local_port_range` has it: two numbers.
pub fn local(text: &str) -> Option<RangeInclusive<u16>> {
    let mut ends = text.split_whitespace().map(|end| end.parse().ok());
    Some(ends.next()??..=ends.next()??)
}

/// As `net.ipv4.ip_local_reserved_ports` has it: `8080,9000-9100`.
pub fn reserved(text: &str) -> Vec<RangeInclusive<u16>> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
    };
    text.split(',').filter_map(range).collect()
}

/// What sockets leave that choose from `local`, but for `reserved`: as many ranges as the program knows, the longest ones.
pub fn left(local: &RangeInclusive<u16>, reserved: &[RangeInclusive<u16>]) -> Vec<RangeInclusive<u16>> {
    let is_free = |port: u16| !local.contains(&port) || reserved.iter().any(|range| range.contains(&port));
    let mut ranges: Vec<RangeInclusive<u16>> = Vec::new();
    for port in (FIRST..=u16::MAX).filter(|&port| is_free(port)) {
        match ranges.last_mut() {
            Some(range) if *range.end() == port - 1 => *range = *range.start()..=port,
            _ => ranges.push(port..=port),
        }
    }
    ranges.sort_by_key(|range| std::cmp::Reverse(range.len()));
    ranges.truncate(PORT_RANGES);
    ranges
}

/// How many there are in all ranges.
pub fn total(ranges: &[RangeInclusive<u16>]) -> usize {
    ranges.iter().map(|range| range.len()).sum()
}

/// What sockets [leave](left), if that is enough.
pub fn usable(local: &RangeInclusive<u16>, reserved: &[RangeInclusive<u16>]) -> Vec<RangeInclusive<u16>> {
    let left = left(local, reserved);
    match total(&left) >= ENOUGH {
        true => left,
        false => self::left(&LOCAL, &[]),
    }
}

/// Those of this network namespace.
pub fn here() -> Vec<RangeInclusive<u16>> {
    let word = |name: &str| fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap_or_default();
    let local = local(&word("ip_local_port_range")).unwrap_or(LOCAL);
    usable(&local, &reserved(&word("ip_local_reserved_ports")))
}

/// For the program.
pub fn shape(usable: &[RangeInclusive<u16>]) -> Ports {
    let mut ports = Ports::default();
    for (into, range) in ports.ranges.iter_mut().zip(usable) {
        let (first, length) = (*range.start(), range.len() as u16);
        *into = PortRange { first, length };
        ports.total += u32::from(length);
    }
    ports
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Columns: both settings of a host; what is left.
    #[test]
    fn sockets_and_the_engine_share_no_port() {
        #[rustfmt::skip]
        let rows: &[(&str, &str, &[RangeInclusive<u16>])] = &[
            ("32768\t60999\n", "\n", &[1024..=32_767, 61_000..=65_535]),
            ("10240 65535", "", &[1024..=10_239]),
            ("1024 65535", "", &[]),
            ("1 65535", "", &[]),
            ("1024 65535", "20000-29999", &[20_000..=29_999]),
            ("32768 60999", "40000,50000-50001", &[1024..=32_767, 61_000..=65_535, 50_000..=50_001, 40_000..=40_000]),
            // At the edge of what is free anyway, across it, and beside it.
            ("32768 60999", "32768-32770", &[1024..=32_770, 61_000..=65_535]),
            ("32768 60999", "80,8080,60000-62000", &[1024..=32_767, 60_000..=65_535]),
            ("2000 65535", "2001,2003,2005,2007,2009,2011,2013,2015-2016,2018",
                &[1024..=1999, 2015..=2016, 2001..=2001, 2003..=2003, 2005..=2005, 2007..=2007, 2009..=2009, 2011..=2011]),
        ];
        for (range, kept, wanted) in rows {
            let (local, kept) = (local(range).unwrap(), reserved(kept));
            let left = left(&local, &kept);
            assert_eq!(left, *wanted, "{range} {kept:?}");
            let used = usable(&local, &kept);
            match total(wanted) < ENOUGH {
                true => assert_eq!(used, [1024..=32_767, 61_000..=65_535]),
                false => assert_eq!(used, left),
            }
            assert_eq!(shape(&used).total as usize, total(&used));
        }
        assert_eq!(local("\n"), None);
        assert_eq!(reserved("\n"), []);
    }
}
