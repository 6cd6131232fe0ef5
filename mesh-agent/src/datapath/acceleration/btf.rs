//! Where the kernel keeps a member of a struct: read from its BTF, of which aya shows no members.

use std::io;

const MAGIC: u16 = 0xeb9f;
const HEADER_LENGTH_AT: usize = 4;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;

/// The kernel's types.
#[derive(Debug)]
pub(super) struct Btf {
    bytes: Vec<u8>,
    types: (usize, usize),
    strings: usize,
}

impl Btf {
    /// Of the running kernel.
    ///
    /// # Errors
    /// It has none, or in a format of the future.
    pub(super) fn of_kernel() -> io::Result<Self> {
        Self::parse(std::fs::read("/sys/kernel/btf/vmlinux")?)
            .ok_or_else(|| io::Error::other("the kernel's BTF is of an unknown format"))
    }

    fn parse(bytes: Vec<u8>) -> Option<Self> {
        let magic = u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?);
        if magic != MAGIC {
            return None;
        }
        let header = word(&bytes, HEADER_LENGTH_AT)? as usize;
        let [type_at, type_length, string_at] = [8, 12, 16].map(|at| word(&bytes, at));
        let start = header + type_at? as usize;
        Some(Self {
            types: (start, start + type_length? as usize),
            strings: header + string_at? as usize,
            bytes,
        })
    }

    /// The offset of a struct's member, in bytes.
    pub(super) fn offset(&self, structure: &str, member: &str) -> Option<u32> {
        let (mut at, end) = self.types;
        while at < end {
            let information = word(&self.bytes, at + 4)?;
            let (kind, count) = (information >> 24 & 0x1f, information & 0xffff);
            let members = at + 12;
            if kind == KIND_STRUCT && self.is_called(word(&self.bytes, at)?, structure) {
                for number in 0..count as usize {
                    let entry = members + 12 * number;
                    if self.is_called(word(&self.bytes, entry)?, member) {
                        // With bit fields about, the upper byte is a size.
                        return Some((word(&self.bytes, entry + 8)? & 0x00ff_ffff) / 8);
                    }
                }
            }
            at = members + size_of_rest(kind, count as usize)?;
        }
        None
    }

    fn is_called(&self, name: u32, wanted: &str) -> bool {
        let at = self.strings + name as usize;
        let rest = self.bytes.get(at..).unwrap_or_default();
        rest.strip_prefix(wanted.as_bytes())
            .is_some_and(|rest| rest.first() == Some(&0))
    }
}

/// Bytes after `struct btf_type`. `None`: a kind of the future.
fn size_of_rest(kind: u32, count: usize) -> Option<usize> {
    Some(match kind {
        // Pointers, forwards, typedefs, qualifiers, functions, floats and type tags.
        2 | 7..=12 | 16 | 18 => 0,
        // Integers, variables and declaration tags.
        1 | 14 | 17 => 4,
        // Arrays.
        3 => 12,
        KIND_STRUCT | KIND_UNION => 12 * count,
        // Enumerations and parameters.
        6 | 13 => 8 * count,
        // Sections and 64-bit enumerations.
        15 | 19 => 12 * count,
        _ => return None,
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_of_this_kernel_are_found() {
        let Ok(btf) = Btf::of_kernel() else {
            // Not every machine that compiles has BTF; the agent needs it, and its tests run there.
            return;
        };
        // `struct list_head`: two pointers.
        assert_eq!(btf.offset("list_head", "next"), Some(0));
        assert_eq!(btf.offset("list_head", "prev"), Some(8));
        assert!(btf.offset("sock", "sk_user_data").is_some_and(|at| at > 0));
        assert_eq!(btf.offset("sock", "no_such_member"), None);
        assert_eq!(btf.offset("no_such_struct", "next"), None);
    }

    #[test]
    fn garbage_is_refused() {
        assert!(Btf::parse(vec![]).is_none());
        assert!(Btf::parse(vec![0; 64]).is_none());
        let mut short = vec![0; 8];
        short[..2].copy_from_slice(&MAGIC.to_ne_bytes());
        assert!(Btf::parse(short).is_none());
    }
}
