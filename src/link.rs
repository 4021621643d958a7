//! Control to worker: newest snapshot (latest wins), bounded command queue, waker.
