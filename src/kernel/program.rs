//! Loading the program and attaching it to interfaces: the only part that takes privileges, in the process that has them.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use aya::maps::MapData;
use aya::programs::tc::{self, SchedClassifierLinkId, TcAttachOptions};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType, TestRun, TestRunOptions};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use serde::{Deserialize, Serialize};

use super::elsewhere;
use super::sources;
use crate::sys::bpf::Array;
use crate::sys::netlink::Netlink;

/// Entries of the maps whose size follows from the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes {
    /// Entries for established flows.
    pub flows: u32,
    /// Slots of all pools, both banks.
    pub table: u32,
    /// Addresses and ports, both banks.
    pub services: u32,
    /// Places for listeners.
    pub listeners: u32,
    /// Places for backends.
    pub backends: u32,
    /// Networks of access lists, both banks.
    pub networks: u32,
}

/// The maps that the engine works on, in the order in which their descriptors travel.
pub const NAMES: [&str; 18] = [
    "state",
    "services",
    "pools",
    "table",
    "listeners",
    "backends",
    "flows",
    "half",
    "listener_tallies",
    "backend_tallies",
    "drops",
    "events",
    "ports",
    "guards",
    "networks",
    "sources",
    "process",
    "removal",
];

/// The program that is attached, by its name in the object.
const PROGRAM: &str = "ingress";

/// The one that has a frame come in at an interface.
const INJECT: &str = "inject";

static OBJECT: &[u8] = aya::include_bytes_aligned!("weir.bpf.o");

/// Number of what is said between a helper and main processes, which may be of later versions.
const PROTOCOL: u8 = 1;

/// What says that two builds have the same program and the same maps, and speak to a helper in the same way.
pub fn digest() -> String {
    use sha2::Digest;
    let hash = sha2::Sha256::new()
        .chain_update([PROTOCOL])
        .chain_update(OBJECT)
        .finalize();
    hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The loaded program and where it is attached. Dropping it detaches it.
pub struct Program {
    ebpf: Ebpf,
    attached: BTreeMap<u32, Attachment>,
}

struct Attachment {
    name: String,
    mac: [u8; 6],
    link: SchedClassifierLinkId,
}

/// An error and all of its causes in one sentence.
fn sentence(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    let mut text = error.to_string();
    for cause in causes {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text += &format!(": {cause}");
        }
    }
    text
}

impl Program {
    /// Makes the maps and loads the program.
    pub fn load(sizes: &Sizes) -> Result<Program, String> {
        let mut ebpf = EbpfLoader::new()
            // Nothing in it depends on the kernel's own types.
            .btf(None)
            .verifier_log_level(VerifierLogLevel::STATS)
            // Each has an entry for both directions.
            .map_max_entries("flows", sizes.flows.saturating_mul(2))
            .map_max_entries("table", sizes.table)
            .map_max_entries("services", sizes.services)
            .map_max_entries("listeners", sizes.listeners)
            .map_max_entries("backends", sizes.backends)
            .map_max_entries("listener_tallies", sizes.listeners)
            .map_max_entries("backend_tallies", sizes.backends)
            .map_max_entries("guards", 2 * sizes.listeners)
            .map_max_entries("networks", sizes.networks)
            .map_max_entries("sources", sources::buckets(sizes.flows))
            .load(OBJECT)
            .map_err(|error| format!("the maps cannot be made: {}", sentence(&error)))?;
        for name in [PROGRAM, INJECT] {
            classifier(&mut ebpf, name).load().map_err(|error| match error {
                ProgramError::LoadError { io_error, .. } => format!("the kernel refuses the program: {io_error}"),
                other => format!("the kernel refuses the program: {}", sentence(&other)),
            })?;
        }
        Ok(Program {
            ebpf,
            attached: BTreeMap::new(),
        })
    }

    /// Descriptors of [`NAMES`].
    pub fn descriptors(&self) -> io::Result<Vec<OwnedFd>> {
        NAMES
            .into_iter()
            .map(|name| {
                let map = self.ebpf.map(name).expect("the object has it");
                data(map).fd().as_fd().try_clone_to_owned()
            })
            .collect()
    }

    /// The process with the workers has gone: they have no connections any more.
    pub fn forget_workers(&self) -> io::Result<()> {
        let map = self.ebpf.map("backends").expect("the object has it");
        let backends = Array::new(data(map).fd().as_fd().try_clone_to_owned()?)?;
        (0..backends.length()).for_each(|place| elsewhere::tell(&backends, place, 0, 0));
        Ok(())
    }

    /// Brings the attachments in line with `wanted` (empty = every Ethernet interface) and with what interfaces there are. Returns
    /// what could not be done, in words.
    pub fn follow(&mut self, wanted: &[String]) -> Vec<String> {
        let interfaces = match Netlink::open().and_then(|mut netlink| netlink.interfaces()) {
            Ok(interfaces) => interfaces,
            Err(error) => return vec![format!("interfaces cannot be listed: {error}")],
        };
        let mut trouble = Vec::new();
        let mut gone: Vec<u32> = self.attached.keys().copied().collect();
        for interface in interfaces {
            let is_wanted = match wanted.is_empty() {
                true => interface.is_ethernet(),
                false => wanted.contains(&interface.name),
            };
            if !is_wanted {
                continue;
            }
            gone.retain(|&index| index != interface.index);
            if !self.attached.contains_key(&interface.index) {
                match attach(classifier(&mut self.ebpf, PROGRAM), &interface.name) {
                    Ok(link) => {
                        let attachment = Attachment {
                            name: interface.name,
                            mac: interface.mac.unwrap_or_default(),
                            link,
                        };
                        self.attached.insert(interface.index, attachment);
                    }
                    Err(error) => trouble.push(format!("{}: {error}", interface.name)),
                }
            }
        }
        for index in gone {
            if let Some(attachment) = self.attached.remove(&index) {
                // Of an interface that has gone: there is nothing to detach from.
                let _ = classifier(&mut self.ebpf, PROGRAM).detach(attachment.link);
            }
        }
        for name in wanted {
            if !self.attached.values().any(|attached| attached.name == *name)
                && !trouble.iter().any(|line| line.starts_with(name))
            {
                trouble.push(format!("{name}: there is no such interface"));
            }
        }
        trouble
    }

    /// Names of the interfaces that it is attached to.
    pub fn attached(&self) -> Vec<String> {
        self.attached.values().map(|attached| attached.name.clone()).collect()
    }

    /// Has a frame come in at the interface that it says, or at any if the program is not attached there.
    pub fn inject(&mut self, frame: &Injected) -> io::Result<()> {
        let wanted = self.attached.get_key_value(&frame.interface);
        let Some((&index, attached)) = wanted.or_else(|| self.attached.first_key_value()) else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        // The source address says where and how: struct injected.
        let bytes = [
            &attached.mac[..],
            &index.to_ne_bytes(),
            &frame.kind.to_ne_bytes(),
            &frame.rest,
        ]
        .concat();
        let mut options = TestRunOptions::new();
        options.data_in = Some(&bytes);
        let outcome = classifier(&mut self.ebpf, INJECT).test_run(options);
        let outcome = outcome.map_err(|error| io::Error::other(sentence(&error)))?;
        match outcome.return_value {
            0 => Ok(()),
            refused => Err(io::Error::other(format!(
                "the kernel takes no frame ({})",
                refused as i32
            ))),
        }
    }
}

/// A frame of our own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Injected {
    /// Where it comes in.
    pub interface: u32,
    /// One of `INJECT_*`.
    pub kind: u16,
    /// What follows its Ethernet addresses.
    pub rest: Vec<u8>,
}

fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> &'a mut SchedClassifier {
    let program = ebpf.program_mut(name).expect("the object has it");
    program.try_into().expect("it is a classifier")
}

/// As the first of the interface's programs: others would see half of a conversation.
fn attach(program: &mut SchedClassifier, interface: &str) -> Result<SchedClassifierLinkId, String> {
    let tcx = TcAttachOptions::TcxOrder(LinkOrder::first());
    match program.attach_with_options(interface, TcAttachType::Ingress, tcx) {
        Ok(link) => Ok(link),
        // Kernels before 6.6: a filter of the clsact discipline.
        Err(_) => {
            let _ = tc::qdisc_add_clsact(interface);
            program
                .attach(interface, TcAttachType::Ingress)
                .map_err(|error| sentence(&error))
        }
    }
}

fn data(map: &aya::maps::Map) -> &MapData {
    use aya::maps::Map::*;
    match map {
        Array(data) | PerCpuArray(data) | HashMap(data) | LruHashMap(data) | LpmTrie(data) | RingBuf(data) => data,
        other => unreachable!("the object has no {other:?}"),
    }
}
