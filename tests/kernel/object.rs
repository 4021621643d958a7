//! The program that is committed.

use std::collections::BTreeMap;
use std::process::Command;

use super::common::have;
use super::model::Program;

/// Seen to fail with a changed constant in weir.bpf.c.
#[test]
fn the_committed_object_is_what_its_source_makes() {
    if !have(&["clang"]) {
        return;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/kernel-object");
    let output = Command::new(script).arg("--check").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The kernel's verifier follows a million instructions at most, older kernels more for the same program, so there is to be room. A
/// branch within a loop is what costs most: see the end of src/kernel/bpf/packet.h. Seen to fail with a program that took 784,021.
#[test]
fn the_verifier_has_little_to_follow() {
    const MOST: u32 = 230_000;
    let verified = Program::new().verified();
    println!("{verified} instructions verified");
    assert!(
        (1..MOST).contains(&verified),
        "{verified} instructions verified of {MOST}"
    );
}

// ---- frames ----

/// What a chain of calls may have on the stack.
const STACK: usize = 512;

/// Before Linux 6.8 each frame counts as a multiple of this.
const ROUND: usize = 32;

/// A function of the program, by its section and place there, in instructions.
type Place = (u16, usize);

struct Function {
    name: String,
    frame: usize,
    calls: Vec<Place>,
}

/// An object file, as far as it is looked at: ELF, 64 bits, little endian.
struct Elf(Vec<u8>);

impl Elf {
    fn number(&self, at: usize, size: usize) -> usize {
        let bytes = self.0[at..at + size].iter().rev();
        bytes.fold(0, |number, &byte| number << 8 | usize::from(byte))
    }

    fn text(&self, at: usize) -> String {
        let rest = &self.0[at..];
        let length = rest.iter().position(|&byte| byte == 0).unwrap();
        String::from_utf8(rest[..length].to_vec()).unwrap()
    }

    /// A section's header: its type, place in the file, size, `sh_link` and `sh_info`.
    fn section(&self, ix: usize) -> (usize, usize, usize, usize, usize) {
        let at = self.number(40, 8) + ix * self.number(58, 2);
        let field = |offset, size| self.number(at + offset, size);
        (field(4, 4), field(24, 8), field(32, 8), field(40, 4), field(44, 4))
    }

    fn sections(&self) -> impl Iterator<Item = (usize, usize, usize, usize, usize)> {
        (0..self.number(60, 2)).map(|ix| self.section(ix))
    }

    /// Name, type, section, value and size of each symbol.
    fn symbols(&self) -> Vec<(String, u8, u16, usize, usize)> {
        let (_, at, size, names, _) = self.sections().find(|section| section.0 == 2).unwrap();
        let names = self.section(names).1;
        let symbol = |at| {
            let kind = self.0[at + 4] & 15;
            (
                self.text(names + self.number(at, 4)),
                kind,
                self.number(at + 6, 2) as u16,
                self.number(at + 8, 8),
                self.number(at + 16, 8),
            )
        };
        (at..at + size).step_by(24).map(symbol).collect()
    }

    /// Symbols that instructions refer to: by their section and place.
    fn references(&self) -> BTreeMap<Place, usize> {
        let relocations = self.sections().filter(|section| section.0 == 9);
        let each = |(_, at, size, _, of): (usize, usize, usize, usize, usize)| {
            (at..at + size)
                .step_by(16)
                .map(move |at| ((of as u16, self.number(at, 8) / 8), self.number(at + 12, 4)))
        };
        relocations.flat_map(each).collect()
    }

    fn functions(&self) -> BTreeMap<Place, Function> {
        let (symbols, references) = (self.symbols(), self.references());
        let functions = symbols.iter().filter(|symbol| symbol.1 == 2);
        let function = |(name, _, section, value, size): &(String, u8, u16, usize, usize)| {
            let code = self.section(usize::from(*section)).1;
            let (mut frame, mut calls, mut has_stack) = (0, Vec::new(), [false; 11]);
            for place in value / 8..(value + size) / 8 {
                let at = code + place * 8;
                let (opcode, to, from) = (self.0[at], self.0[at + 1] & 15, self.0[at + 1] >> 4);
                let offset = self.number(at + 2, 2) as i16;
                let immediate = self.number(at + 4, 4) as i32;
                let base = if opcode & 7 == 1 { from } else { to };
                match opcode {
                    // A call of our own.
                    0x85 if from == 1 || references.contains_key(&(*section, place)) => {
                        let (section, base) = match references.get(&(*section, place)) {
                            Some(&symbol) => (symbols[symbol].2, (symbols[symbol].3 / 8) as i32),
                            None => (*section, place as i32),
                        };
                        calls.push((section, (base + immediate + 1) as usize));
                    }
                    // r = r10, r += -8
                    0xbf => has_stack[usize::from(to)] = from == 10,
                    0x07 if has_stack[usize::from(to)] && immediate < 0 => {
                        frame = frame.max(-immediate as usize);
                        has_stack[usize::from(to)] = false;
                    }
                    // Loads and stores.
                    _ if (1..=3).contains(&(opcode & 7)) && base == 10 && offset < 0 => {
                        frame = frame.max(usize::from(offset.unsigned_abs()));
                    }
                    _ => {}
                }
            }
            let name = name.clone();
            ((*section, value / 8), Function { name, frame, calls })
        };
        functions.map(function).collect()
    }
}

/// The most that a function and what it calls have on the stack, and the chain that has it.
fn deepest(functions: &BTreeMap<Place, Function>, place: Place) -> (usize, String) {
    let function = &functions[&place];
    let below = function.calls.iter().map(|&call| deepest(functions, call)).max();
    let (below, chain) = below.unwrap_or_default();
    let frame = function.frame.max(1).next_multiple_of(ROUND);
    (frame + below, format!("{} {frame}, {chain}", function.name))
}

/// As older kernels count it; this one may be more generous. Seen to fail with a chain of 544 bytes, which Linux 6.1 refuses to load.
#[test]
fn frames_fit_the_stack_of_older_kernels() {
    let object = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/src/kernel/weir.bpf.o")).unwrap();
    let functions = Elf(object).functions();
    assert!(functions.values().any(|function| function.name == "take_port"));
    for (&place, function) in &functions {
        let (depth, chain) = deepest(&functions, place);
        if function.name == "ingress" {
            println!("{depth}: {chain}");
        }
        assert!(depth <= STACK, "{depth} bytes of {STACK}: {chain}");
    }
}
