//! The archive an initramfs is: cpio's "newc" format.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::{Component, Path};

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// An archive being written. Directories come by themselves.
pub(super) struct Archive<W> {
    out: W,
    written: u64,
    files: u32,
    names: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    pub(super) fn new(out: W) -> Self {
        Self {
            out,
            written: 0,
            files: 0,
            names: BTreeSet::new(),
        }
    }

    /// A file that may be read and run. One that is there already is left alone.
    pub(super) fn file(&mut self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.entry(path, PROGRAM, (0, 0), content)
    }

    /// A symbolic link.
    pub(super) fn link(&mut self, path: &Path, to: &str) -> io::Result<()> {
        self.entry(path, LINK, (0, 0), to.as_bytes())
    }

    /// A character device.
    pub(super) fn device(&mut self, path: &Path, number: (u32, u32)) -> io::Result<()> {
        self.entry(path, CHARACTER_DEVICE, number, &[])
    }

    /// An empty directory.
    pub(super) fn directory(&mut self, path: &Path) -> io::Result<()> {
        self.entry(path, DIRECTORY, (0, 0), &[])
    }

    /// Ends the archive.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.header("TRAILER!!!", 0, (0, 0), 0)?;
        self.out.flush()
    }

    fn entry(
        &mut self,
        path: &Path,
        mode: u32,
        device: (u32, u32),
        content: &[u8],
    ) -> io::Result<()> {
        let parts: Vec<_> = path
            .components()
            .filter_map(|part| match part {
                Component::Normal(name) => Some(name.to_string_lossy()),
                _ => None,
            })
            .collect();
        for depth in 1..parts.len() {
            let parent = parts[..depth].join("/");
            if self.names.insert(parent.clone()) {
                self.header(&parent, DIRECTORY, (0, 0), 0)?;
            }
        }
        let name = parts.join("/");
        if self.names.insert(name.clone()) {
            let length = u32::try_from(content.len()).map_err(io::Error::other)?;
            self.header(&name, mode, device, length)?;
            self.write(content)?;
            self.align()?;
        }
        Ok(())
    }

    fn header(
        &mut self,
        name: &str,
        mode: u32,
        (major, minor): (u32, u32),
        length: u32,
    ) -> io::Result<()> {
        self.files += 1;
        let (inode, links) = (self.files, 1);
        let name_length = name.len() as u32 + 1;
        let fields = [
            inode,
            mode,
            0,
            0,
            links,
            0,
            length,
            0,
            0,
            major,
            minor,
            name_length,
            0,
        ];
        self.write(b"070701")?;
        for field in fields {
            self.write(format!("{field:08x}").as_bytes())?;
        }
        self.write(name.as_bytes())?;
        self.write(&[0])?;
        self.align()
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn align(&mut self) -> io::Result<()> {
        let missing = self.written.next_multiple_of(4) - self.written;
        self.write(&[0; 3][..missing as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_have_110_bytes_and_everything_is_aligned() -> io::Result<()> {
        let mut bytes = Vec::new();
        let mut archive = Archive::new(&mut bytes);
        archive.file(Path::new("/a/b"), b"hello")?;
        archive.file(Path::new("/a/b"), b"again")?;
        archive.finish()?;
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(
            text.matches("070701").count(),
            3,
            "a, a/b and the end: {text}"
        );
        // Header, name and end of name of `a` fill 112 bytes.
        assert_eq!(&bytes[110..112], b"a\0");
        assert!(!text.contains("again"));
        Ok(())
    }
}
