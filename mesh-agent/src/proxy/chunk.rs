//! Memory for large reads, given back to the thread that drops it.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

use bytes::Bytes;

/// Bytes of a chunk: four records of TLS of full size, about.
pub(super) const CHUNK: usize = 64 << 10;
/// Chunks that a thread keeps when nobody needs them.
const KEPT: usize = 32;
/// Fewer bytes than this are copied rather than keeping a chunk from its next use.
const WORTH_KEEPING: usize = 4 << 10;

thread_local! {
    static FREE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A chunk with whatever the last user left in it.
#[derive(Debug)]
pub(super) struct Chunk(Box<[u8]>);

impl Chunk {
    pub(super) fn take() -> Self {
        let free = FREE.with_borrow_mut(Vec::pop);
        Self(free.unwrap_or_else(|| vec![0; CHUNK].into_boxed_slice()))
    }

    /// Its first bytes, to be handed on.
    pub(super) fn into_bytes(self, length: usize) -> Bytes {
        if length < WORTH_KEEPING {
            Bytes::copy_from_slice(&self[..length])
        } else {
            Bytes::from_owner(self).slice(..length)
        }
    }
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Deref for Chunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Chunk {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.0);
        // A thread that ends keeps none.
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if free.len() < KEPT {
                free.push(bytes);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_used_again_and_not_hoarded() {
        let mut chunk = Chunk::take();
        chunk[..WORTH_KEEPING].fill(7);
        let (long, at) = (chunk.into_bytes(WORTH_KEEPING), FREE.with_borrow(Vec::len));
        assert!(long.iter().all(|byte| *byte == 7));
        let rest = long.slice(1..);
        drop(long);
        assert_eq!(FREE.with_borrow(Vec::len), at, "it is still in use");
        drop(rest);
        assert_eq!(FREE.with_borrow(Vec::len), at + 1);
        let short = Chunk::take().into_bytes(3);
        assert_eq!((&*short, FREE.with_borrow(Vec::len)), (&[7; 3][..], at + 1));
        drop((0..1000).map(|_| Chunk::take()).collect::<Vec<_>>());
        assert_eq!(FREE.with_borrow(Vec::len), KEPT);
    }
}
