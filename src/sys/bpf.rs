//! bpf(2) on maps, through descriptors that somebody with the privilege has made: looking up, changing, memory shared with
//! programs. None of it takes a capability.

use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use seccompiler::{SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

/// Commands of bpf(2) that this file uses.
const COMMANDS: [u32; 6] = [LOOKUP, UPDATE, DELETE, INFO, TAKE, LOOKUP_BATCH];

const LOOKUP: u32 = 1;
const UPDATE: u32 = 2;
const DELETE: u32 = 3;
const INFO: u32 = 15;
const TAKE: u32 = 21;
const LOOKUP_BATCH: u32 = 24;

/// What a filter of system calls lets through: the commands on maps that somebody has handed over. They make nothing and load
/// nothing.
pub(super) fn allowed() -> Result<Vec<SeccompRule>, String> {
    let rule = |command| rule(SeccompCmpOp::Eq, &[command]);
    COMMANDS.into_iter().map(rule).collect()
}

/// Every other command, which only an intruder gives.
pub(super) fn refused() -> Result<Vec<SeccompRule>, String> {
    Ok(vec![rule(SeccompCmpOp::Ne, &COMMANDS)?])
}

/// All of these comparisons with the command.
fn rule(op: SeccompCmpOp, commands: &[u32]) -> Result<SeccompRule, String> {
    let compare = |&command: &u32| SeccompCondition::new(0, SeccompCmpArgLen::Dword, op.clone(), u64::from(command));
    let conditions: Result<Vec<_>, _> = commands.iter().map(compare).collect();
    conditions.and_then(SeccompRule::new).map_err(|error| error.to_string())
}

/// A hash table, or an array with a value for each processor.
#[derive(Debug)]
pub struct Map {
    fd: OwnedFd,
    key_size: usize,
    /// Of all processors together, where each has its own.
    value_size: usize,
    entries: usize,
}

/// A way through a table, taken step by step.
#[derive(Debug, Default)]
pub struct Walk {
    /// The kernel's place in the table, a number or a key; `None` = its beginning.
    from: Option<Vec<u8>>,
    keys: Vec<u8>,
    values: Vec<u8>,
}

impl Walk {
    /// Whether the next step is the first of a way.
    pub fn is_at_start(&self) -> bool {
        self.from.is_none()
    }
}

/// The first words of `struct bpf_map_info`.
#[repr(C)]
#[derive(Default)]
struct Info {
    kind: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
    entries: u32,
    flags: u32,
}

/// BPF_MAP_TYPE_PERCPU_ARRAY.
const PERCPU_ARRAY: u32 = 6;

/// `union bpf_attr` for [`INFO`].
#[repr(C)]
#[derive(Default)]
struct Question {
    fd: u32,
    length: u32,
    info: u64,
}

fn info(fd: BorrowedFd) -> io::Result<Info> {
    let mut info = Info::default();
    let mut attributes = Question {
        fd: fd.as_raw_fd() as u32,
        length: size_of::<Info>() as u32,
        info: &raw mut info as u64,
    };
    // SAFETY: the kernel writes at most `length` bytes there.
    unsafe { bpf(INFO, &mut attributes)? };
    Ok(info)
}

/// `union bpf_attr` for one element.
#[repr(C)]
#[derive(Default)]
struct Element {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `union bpf_attr` for many.
#[repr(C)]
#[derive(Default)]
struct Batch {
    from: u64,
    to: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// # Safety
/// Addresses in `attributes` must point at memory that the command may read and write.
unsafe fn bpf<T>(command: u32, attributes: &mut T) -> io::Result<()> {
    let size = size_of::<T>();
    // SAFETY: `attributes` is `size` bytes of initialised memory; what it points at is the caller's promise.
    match unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `NotFound` is an answer.
fn found(outcome: io::Result<()>) -> io::Result<bool> {
    match outcome {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

impl Map {
    /// The map behind this descriptor.
    pub fn new(fd: OwnedFd) -> io::Result<Map> {
        let info = info(fd.as_fd())?;
        let value_size = info.value_size as usize;
        Ok(Map {
            fd,
            key_size: info.key_size as usize,
            value_size: match info.kind {
                PERCPU_ARRAY => value_size.next_multiple_of(8) * possible_cpus()?,
                _ => value_size,
            },
            entries: info.entries as usize,
        })
    }

    fn element(&self, command: u32, key: &[u8], value: u64, flags: u64) -> io::Result<()> {
        assert_eq!(key.len(), self.key_size);
        let mut attributes = Element {
            map: self.fd.as_raw_fd() as u32,
            key: key.as_ptr() as u64,
            value,
            flags,
            ..Element::default()
        };
        // SAFETY: the key has the map's size; `value`, where the command looks at it, too: see the callers.
        unsafe { bpf(command, &mut attributes) }
    }

    /// Reads the value of a key; false = there is none.
    pub fn lookup(&self, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
        assert_eq!(value.len(), self.value_size);
        found(self.element(LOOKUP, key, value.as_mut_ptr() as u64, 0))
    }

    /// Reads the value of a key and removes it in one step; false = there is none.
    pub fn take(&self, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
        assert_eq!(value.len(), self.value_size);
        found(self.element(TAKE, key, value.as_mut_ptr() as u64, 0))
    }

    /// Sets the value of a key.
    pub fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        assert_eq!(value.len(), self.value_size);
        self.element(UPDATE, key, value.as_ptr() as u64, 0)
    }

    /// How many entries the map holds at most.
    pub fn entries(&self) -> usize {
        self.entries
    }

    /// Removes a key; false = there is none.
    pub fn delete(&self, key: &[u8]) -> io::Result<bool> {
        found(self.element(DELETE, key, 0, 0))
    }

    /// Bytes of a key.
    pub fn key_size(&self) -> usize {
        self.key_size
    }

    /// Bytes of a value, of all processors together.
    pub fn value_size(&self) -> usize {
        self.value_size
    }

    /// Looks at the next entries of a hash table, `most` of them, more than any of its buckets holds; true at its end, from where
    /// `walk` begins anew. What is added or removed meanwhile may be seen or not.
    pub fn step(&self, walk: &mut Walk, most: usize, mut each: impl FnMut(&[u8], &[u8])) -> io::Result<bool> {
        walk.keys.resize(most * self.key_size, 0);
        walk.values.resize(most * self.value_size, 0);
        let mut to = vec![0u8; self.key_size.max(4)];
        let mut attributes = Batch {
            from: walk.from.as_ref().map_or(0, |from| from.as_ptr() as u64),
            to: to.as_mut_ptr() as u64,
            keys: walk.keys.as_mut_ptr() as u64,
            values: walk.values.as_mut_ptr() as u64,
            count: most as u32,
            map: self.fd.as_raw_fd() as u32,
            ..Batch::default()
        };
        // SAFETY: both buffers hold `count` elements of the map's sizes; the places are four bytes in hash tables, a key in others.
        let outcome = unsafe { bpf(LOOKUP_BATCH, &mut attributes) };
        let is_end = !found(outcome)?;
        let keys = walk.keys.chunks(self.key_size);
        let entries = keys.zip(walk.values.chunks(self.value_size));
        entries
            .take(attributes.count as usize)
            .for_each(|(key, value)| each(key, value));
        walk.from = (!is_end).then_some(to);
        Ok(is_end)
    }

    /// Goes through a whole hash table as in [`step`](Self::step).
    pub fn walk(&self, most: usize, mut each: impl FnMut(&[u8], &[u8])) -> io::Result<()> {
        let mut walk = Walk::default();
        while !self.step(&mut walk, most, &mut each)? {}
        Ok(())
    }

    /// A second descriptor.
    pub fn try_clone_fd(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }
}

/// Processors that the kernel keeps memory for.
fn possible_cpus() -> io::Result<usize> {
    let text = fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = text
        .trim()
        .rsplit([',', '-'])
        .next()
        .and_then(|n| n.parse::<usize>().ok());
    let unknown = || io::Error::other(format!("processors {text:?} are not understood"));
    Ok(last.ok_or_else(unknown)? + 1)
}

/// Memory shared with a program.
#[derive(Debug)]
struct Memory {
    at: NonNull<libc::c_void>,
    length: usize,
}

// SAFETY: it is only memory; who reads and writes it does so by atomics.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    fn new(fd: BorrowedFd, offset: usize, length: usize, writable: bool) -> io::Result<Memory> {
        let size = NonZeroUsize::new(length).ok_or(io::ErrorKind::InvalidInput)?;
        let protection = match writable {
            true => ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
            false => ProtFlags::PROT_READ,
        };
        // SAFETY: a new mapping, at a place that the kernel chooses.
        let at = unsafe { mmap(None, size, protection, MapFlags::MAP_SHARED, fd, offset as libc::off_t)? };
        Ok(Memory { at, length })
    }

    fn words(&self) -> &[AtomicU32] {
        // SAFETY: the mapping is page-aligned, as long as this value lives, and memory of maps is initialised.
        unsafe { std::slice::from_raw_parts(self.at.cast::<AtomicU32>().as_ptr(), self.length / 4) }
    }

    fn longs(&self) -> &[AtomicU64] {
        // SAFETY: as above; pages are multiples of eight bytes.
        unsafe { std::slice::from_raw_parts(self.at.cast::<AtomicU64>().as_ptr(), self.length / 8) }
    }

    fn long(&self, at: usize) -> &AtomicU64 {
        assert!(at.is_multiple_of(8) && at + 8 <= self.length);
        // SAFETY: within the mapping, and aligned.
        unsafe { self.at.byte_add(at).cast::<AtomicU64>().as_ref() }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: nothing refers to it any more.
        let _ = unsafe { munmap(self.at, self.length) };
    }
}

fn page() -> usize {
    // SAFETY: no memory is involved.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

/// An array map whose memory is shared with the program: reads and writes are plain memory accesses.
#[derive(Debug)]
pub struct Array {
    fd: OwnedFd,
    memory: Memory,
    /// Words of an element.
    each: usize,
    length: usize,
}

impl Array {
    /// Of this descriptor; elements are multiples of eight bytes.
    pub fn new(fd: OwnedFd) -> io::Result<Array> {
        let info = info(fd.as_fd())?;
        let (size, length) = (info.value_size as usize, info.entries as usize);
        assert!(size.is_multiple_of(8));
        let memory = Memory::new(fd.as_fd(), 0, (size * length).next_multiple_of(page()), true)?;
        Ok(Array {
            fd,
            memory,
            each: size / 4,
            length,
        })
    }

    /// How many elements the array has.
    pub fn length(&self) -> usize {
        self.length
    }

    /// The words of an element.
    pub fn words(&self, ix: usize) -> &[AtomicU32] {
        assert!(ix < self.length);
        &self.memory.words()[ix * self.each..][..self.each]
    }

    /// The words of eight bytes of an element.
    pub fn longs(&self, ix: usize) -> &[AtomicU64] {
        assert!(ix < self.length);
        &self.memory.longs()[ix * self.each / 2..][..self.each / 2]
    }

    /// Writes an element, word by word.
    pub fn put(&self, ix: usize, bytes: &[u8]) {
        assert_eq!(bytes.len(), self.each * 4);
        for (word, bytes) in self.words(ix).iter().zip(bytes.as_chunks::<4>().0) {
            word.store(u32::from_ne_bytes(*bytes), Ordering::Relaxed);
        }
    }

    /// A copy of the element with this index.
    pub fn get(&self, ix: usize) -> Vec<u8> {
        let words = self.words(ix).iter();
        words
            .flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes())
            .collect()
    }

    /// A second descriptor.
    pub fn try_clone_fd(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }
}

/// What was written before is seen by programs before what is written after.
pub fn publish() {
    fence(Ordering::SeqCst);
}

/// A ring of messages from a program.
#[derive(Debug)]
pub struct Ring {
    fd: OwnedFd,
    /// The reader's position.
    consumer: Memory,
    /// The writer's position, and the messages twice in a row.
    producer: Memory,
    size: usize,
}

/// A message that is not complete yet.
const BUSY: u32 = 1 << 31;
/// A message that was taken back.
const DISCARDED: u32 = 1 << 30;
const HEADER: usize = 8;

impl Ring {
    /// The ring buffer behind this descriptor, mapped into memory.
    pub fn new(fd: OwnedFd) -> io::Result<Ring> {
        let size = info(fd.as_fd())?.entries as usize;
        let consumer = Memory::new(fd.as_fd(), 0, page(), true)?;
        let producer = Memory::new(fd.as_fd(), page(), page() + 2 * size, false)?;
        Ok(Ring {
            fd,
            consumer,
            producer,
            size,
        })
    }

    /// Hands every message that is there to `each`.
    pub fn read(&self, mut each: impl FnMut(&[u8])) {
        let mut position = self.consumer.long(0).load(Ordering::Acquire);
        while position < self.producer.long(0).load(Ordering::Acquire) {
            let at = page() + (position as usize & (self.size - 1));
            let header = self.producer.words()[at / 4].load(Ordering::Acquire);
            if header & BUSY != 0 {
                return;
            }
            let length = (header & !DISCARDED) as usize;
            if header & DISCARDED == 0 {
                let words = &self.producer.words()[(at + HEADER) / 4..][..length.div_ceil(4)];
                let words = words.iter().map(|word| word.load(Ordering::Relaxed));
                let bytes: Vec<u8> = words.flat_map(u32::to_ne_bytes).collect();
                each(&bytes[..length]);
            }
            position += (length.next_multiple_of(8) + HEADER) as u64;
            self.consumer.long(0).store(position, Ordering::Release);
        }
    }

    /// A second descriptor.
    pub fn try_clone_fd(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }
}

impl AsFd for Ring {
    /// Readable when there are messages.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
