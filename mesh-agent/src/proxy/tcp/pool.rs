//! Memory for bytes in flight: a pool a worker, of which an idle connection holds nothing.

use std::cell::RefCell;
use std::io;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

use super::pipe::Pipe;

/// What most reads fit in.
const SMALL: usize = 16 << 10;
/// For streams that fill small ones.
const LARGE: usize = 128 << 10;
/// Most bytes of each kind of buffer that are kept when nobody needs them.
const KEPT: usize = 2 << 20;
/// Most pipes that are kept when nobody needs them.
const KEPT_PIPES: usize = 32;

/// How much a read should take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Size {
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

/// The buffers and pipes of a worker.
#[derive(Debug, Clone, Default)]
pub(in crate::proxy) struct Pool(Rc<RefCell<Free>>);

#[derive(Debug, Default)]
struct Free {
    small: Vec<Box<[u8]>>,
    large: Vec<Box<[u8]>>,
    pipes: Vec<Pipe>,
}

impl Free {
    fn of(&mut self, size: Size) -> &mut Vec<Box<[u8]>> {
        match size {
            Size::Small => &mut self.small,
            Size::Large => &mut self.large,
        }
    }
}

impl Pool {
    /// A buffer with whatever the last user left in it.
    pub(super) fn buffer(&self, size: Size) -> Buffer {
        let free = self.0.borrow_mut().of(size).pop();
        Buffer {
            bytes: free.unwrap_or_else(|| vec![0; size.bytes()].into_boxed_slice()),
            size,
            pool: self.clone(),
        }
    }

    /// An empty pipe.
    ///
    /// # Errors
    /// No descriptors are left.
    pub(super) fn pipe(&self) -> io::Result<PooledPipe> {
        let free = self.0.borrow_mut().pipes.pop();
        let pipe = match free {
            Some(pipe) => pipe,
            None => Pipe::new()?,
        };
        Ok(PooledPipe {
            pipe: Some(pipe),
            pool: self.clone(),
        })
    }
}

/// A buffer in use; drop gives it back.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Box<[u8]>,
    size: Size,
    pool: Pool,
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

/// A pipe in use; drop gives it back, unless somebody's bytes are still in it.
#[derive(Debug)]
pub(super) struct PooledPipe {
    pipe: Option<Pipe>,
    pool: Pool,
}

impl PooledPipe {
    pub(super) fn get(&mut self) -> &mut Pipe {
        self.pipe.as_mut().expect("only drop takes it")
    }
}

impl Drop for PooledPipe {
    fn drop(&mut self) {
        let free = &mut self.pool.0.borrow_mut().pipes;
        if let Some(pipe) = self.pipe.take()
            && pipe.filled() == 0
            && free.len() < KEPT_PIPES
        {
            free.push(pipe);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_used_again_and_not_hoarded() {
        let pool = Pool::default();
        let mut first = pool.buffer(Size::Large);
        first[0] = 7;
        drop(first);
        assert_eq!(pool.buffer(Size::Large)[0], 7);
        let many: Vec<Buffer> = (0..1000).map(|_| pool.buffer(Size::Small)).collect();
        drop(many);
        let kept = pool.0.borrow().small.len() * SMALL;
        assert_eq!(kept, KEPT);
    }

    #[test]
    fn pipes_are_used_again_and_not_hoarded() {
        let pool = Pool::default();
        let many: Vec<PooledPipe> = (0..50).map(|_| pool.pipe().expect("descriptors")).collect();
        drop(many);
        assert_eq!(pool.0.borrow().pipes.len(), KEPT_PIPES);
        let _taken = pool.pipe();
        assert_eq!(pool.0.borrow().pipes.len(), KEPT_PIPES - 1);
    }
}
