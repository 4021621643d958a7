//! Runs one pure hot path so many times: `hot_paths NAME TIMES`; without arguments prints the names.
//! `scripts/bench-instructions` counts its instructions.

#[path = "../benches/hot/mod.rs"]
mod hot;

fn main() {
    let mut args = std::env::args().skip(1);
    let (Some(name), Some(times)) = (args.next(), args.next()) else {
        hot::ALL.iter().for_each(|(name, _)| println!("{name}"));
        return;
    };
    let times: u64 = times.parse().expect("TIMES is a number");
    let (_, make) = hot::ALL.iter().find(|(known, _)| *known == name).expect("a known path");
    let mut path = make();
    (0..times).for_each(|_| path());
}
