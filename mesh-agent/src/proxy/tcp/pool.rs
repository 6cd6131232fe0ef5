//! Memory for bytes in flight: a pool a worker, of which an idle connection holds nothing.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

/// What most reads fit in.
const SMALL: usize = 16 << 10;
/// For streams that fill small ones.
const LARGE: usize = 128 << 10;
/// Most bytes of each kind that are kept when nobody needs them.
const KEPT: usize = 2 << 20;

/// How much a read should take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::proxy) enum Size {
    #[default]
    Small,
    Large,
}

impl Size {
    fn bytes(self) -> usize {
        match self {
            Self::Small => SMALL,
            Self::Large => LARGE,
        }
    }
}

/// The buffers of a worker.
#[derive(Debug, Clone, Default)]
pub(in crate::proxy) struct Buffers(Rc<RefCell<Free>>);

#[derive(Debug, Default)]
struct Free {
    small: Vec<Box<[u8]>>,
    large: Vec<Box<[u8]>>,
}

impl Free {
    fn of(&mut self, size: Size) -> &mut Vec<Box<[u8]>> {
        match size {
            Size::Small => &mut self.small,
            Size::Large => &mut self.large,
        }
    }
}

impl Buffers {
    /// A buffer with whatever the last user left in it.
    pub(super) fn take(&self, size: Size) -> Buffer {
        let free = self.0.borrow_mut().of(size).pop();
        Buffer {
            bytes: free.unwrap_or_else(|| vec![0; size.bytes()].into_boxed_slice()),
            size,
            pool: self.clone(),
        }
    }
}

/// A buffer in use; drop gives it back.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Box<[u8]>,
    size: Size,
    pool: Buffers,
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut pool = self.pool.0.borrow_mut();
        let free = pool.of(self.size);
        if free.len() * self.size.bytes() < KEPT {
            free.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_used_again_and_not_hoarded() {
        let buffers = Buffers::default();
        let mut first = buffers.take(Size::Large);
        first[0] = 7;
        drop(first);
        assert_eq!(buffers.take(Size::Large)[0], 7);
        let many: Vec<Buffer> = (0..1000).map(|_| buffers.take(Size::Small)).collect();
        drop(many);
        let kept = buffers.0.borrow().small.len() * SMALL;
        assert_eq!(kept, KEPT);
    }
}
