//! Programs and maps of a trial's own, which nobody else sees and which end with it.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, HashMap, MapData, SkStorage, SockHash};
use aya::{Ebpf, EbpfLoader};
use mesh_common::{Acceleration, AccelerationFlags, FastKey, Flow, Pair, Side};

use super::super::{attach, describe_kernel, load, offsets};
use super::PATIENCE;
use crate::datapath::object;

/// Bytes of a message that is redirected.
pub(super) const SMALL: usize = 100;
/// Bytes of one that is not.
pub(super) const LARGE: usize = 8000;
const ENTRIES: u32 = 64;

/// The programs, attached to a map of their own.
pub(super) struct Stage {
    _ebpf: Ebpf,
    fast: SockHash<MapData, FastKey>,
    flow: SkStorage<MapData, Flow>,
    pairs: HashMap<MapData, u64, Pair>,
    last: u64,
}

/// A connection over loopback of which both ends are accelerated.
pub(super) struct Twins {
    pub(super) client: TcpStream,
    pub(super) server: TcpStream,
    number: u64,
}

impl Stage {
    pub(super) fn set() -> Result<Self> {
        let offsets = offsets();
        let mut loader = EbpfLoader::new();
        // Only a few of the maps are used at all.
        for map in [
            "ORIG", "DENIED", "PEERS", "HABITS", "FAST", "PAIRS", "LISTEN",
        ] {
            loader.map_max_entries(map, ENTRIES);
        }
        describe_kernel(&mut loader, &offsets);
        let mut ebpf = loader.load(object::OBJECT)?;
        load(&mut ebpf)?;
        attach(&mut ebpf)?;
        let mut take = |name: &'static str| ebpf.take_map(name).context(name);
        let mut settings: Array<MapData, Acceleration> = take("ACCEL")?.try_into()?;
        let flags = AccelerationFlags::DIRECT;
        settings.set(
            0,
            Acceleration {
                flags,
                max_message: LARGE as u32 / 2,
                max_unanswered: 16 << 10,
                pad: 0,
            },
            0,
        )?;
        Ok(Self {
            fast: take("FAST")?.try_into()?,
            flow: take("FLOW")?.try_into()?,
            pairs: take("PAIRS")?.try_into()?,
            last: 0,
            _ebpf: ebpf,
        })
    }

    pub(super) fn twins(&mut self) -> Result<Twins> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let client = TcpStream::connect(listener.local_addr()?)?;
        let (server, peer) = listener.accept()?;
        ensure!(client.local_addr()? == peer, "somebody else connected");
        self.last += 1;
        let number = self.last;
        self.pairs.insert(number, Pair::default(), 0)?;
        for (socket, side) in [(&client, Side::CLIENT), (&server, Side::SERVER)] {
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.set_write_timeout(Some(PATIENCE))?;
            let flow = Flow {
                pair: number,
                side,
                left: 0,
            };
            self.flow.insert(socket, flow, 0)?;
            let key = FastKey {
                pair: number,
                side,
                pad: 0,
            };
            self.fast.insert(key, socket.as_raw_fd(), 0)?;
        }
        Ok(Twins {
            client,
            server,
            number,
        })
    }
}

impl Twins {
    /// A trial of what was not redirected shows nothing.
    pub(super) fn ensure_redirected(&self, stage: &Stage) -> Result<()> {
        let pair = stage.pairs.get(&self.number, 0)?;
        ensure!(pair.bytes[0] > 0, "nothing was redirected");
        Ok(())
    }
}
