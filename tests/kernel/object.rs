//! The program that is committed.

use std::collections::BTreeMap;
use std::process::Command;

use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget, SectionIndex, Symbol, SymbolKind};

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
type Place = (usize, usize);

struct Function {
    name: String,
    frame: usize,
    calls: Vec<Place>,
}

fn functions(object: &[u8]) -> BTreeMap<Place, Function> {
    let file = object::File::parse(object).unwrap();
    // What instructions refer to.
    let mut references = BTreeMap::new();
    for section in file.sections() {
        for (at, relocation) in section.relocations() {
            if let RelocationTarget::Symbol(symbol) = relocation.target() {
                references.insert(
                    (section.index().0, at as usize / 8),
                    place(&file.symbol_by_index(symbol).unwrap()),
                );
            }
        }
    }
    let functions = file
        .symbols()
        .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0);
    let function = |symbol: Symbol| {
        let (section, first) = place(&symbol);
        let code = file.section_by_index(SectionIndex(section)).unwrap().data().unwrap();
        let (mut frame, mut calls, mut has_stack) = (0, Vec::new(), [false; 11]);
        for at in first..first + symbol.size() as usize / 8 {
            let [opcode, registers, o0, o1, i0, i1, i2, i3] = code.as_chunks::<8>().0[at];
            let (to, from) = (registers & 15, registers >> 4);
            let offset = i16::from_le_bytes([o0, o1]);
            let immediate = i32::from_le_bytes([i0, i1, i2, i3]);
            let base = if opcode & 7 == 1 { from } else { to };
            let reference = references.get(&(section, at));
            match opcode {
                // A call of our own.
                0x85 if from == 1 || reference.is_some() => {
                    let (section, base) = reference.copied().unwrap_or((section, at));
                    calls.push((section, (base as i32 + immediate + 1) as usize));
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
        let name = symbol.name().unwrap().to_string();
        ((section, first), Function { name, frame, calls })
    };
    functions.map(function).collect()
}

fn place(symbol: &Symbol) -> Place {
    (symbol.section_index().unwrap().0, symbol.address() as usize / 8)
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
    let functions = functions(&object);
    assert!(functions.values().any(|function| function.name == "take_port"));
    for (&place, function) in &functions {
        let (depth, chain) = deepest(&functions, place);
        if function.name == "ingress" {
            println!("{depth}: {chain}");
        }
        assert!(depth <= STACK, "{depth} bytes of {STACK}: {chain}");
    }
}
