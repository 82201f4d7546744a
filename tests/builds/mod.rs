//! Other builds of the binary under test, to upgrade to and to downgrade from.
//!
//! Made by changing a copy, since compiling the programs and the daemon again takes minutes: what
//! differs is what the daemon can tell builds apart by, and the instructions that the kernel runs.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use oncache::datapath::pins::ABI;
use oncache_testbed::{Host, Lab};
use tempfile::TempDir;

/// Where every host of the lab finds its binary, as a package manager would have put it.
const INSTALLED: &str = "/run/testbed/oncache";

/// A build of oncache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Build {
    /// The binary under test.
    Present,
    /// The same maps, other instructions: each of the four programs returns by another one.
    SameAbi,
    /// As that, and its maps are another layout's by the hash that names their directory.
    OtherAbi,
}

impl Build {
    /// The hash that names the directory of this build's maps.
    pub fn abi(self) -> String {
        match self {
            Self::Present | Self::SameAbi => ABI.to_owned(),
            // Every digit differs.
            Self::OtherAbi => ABI
                .bytes()
                .map(|digit| {
                    let value = char::from(digit).to_digit(16).expect("a hexadecimal digit");
                    char::from_digit(15 - value, 16).expect("a hexadecimal digit")
                })
                .collect(),
        }
    }
}

/// The builds as files.
pub struct Builds {
    directory: TempDir,
}

impl Builds {
    pub fn make() -> Self {
        let directory = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let builds = Self { directory };
        let mut binary = fs::read(env!("CARGO_BIN_EXE_oncache")).expect("the binary");
        change_programs(&mut binary);
        builds.write(Build::SameAbi, &binary);
        let places = replace(
            &mut binary,
            ABI.as_bytes(),
            Build::OtherAbi.abi().as_bytes(),
        );
        assert!(places > 0, "the binary does not hold its ABI {ABI}");
        builds.write(Build::OtherAbi, &binary);
        builds
    }

    fn path(&self, build: Build) -> PathBuf {
        match build {
            Build::Present => Path::new(env!("CARGO_BIN_EXE_oncache")).to_owned(),
            other => self.directory.path().join(format!("oncache-{other:?}")),
        }
    }

    fn write(&self, build: Build, binary: &[u8]) {
        let path = self.path(build);
        fs::write(&path, binary).expect("room for a binary");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("an executable");
    }

    /// Two hosts that run what is installed on them: the binary under test, for a start.
    pub fn two_hosts(&self) -> Lab {
        let lab = Lab::two_hosts(INSTALLED);
        for host in lab.all() {
            self.install(host, Build::Present);
        }
        lab
    }

    /// Replaces the binary on a host, as a package manager does: by name, under a running daemon.
    pub fn install(&self, host: &Host, build: Build) {
        self.install_file(host, &self.path(build));
    }

    /// The same with whichever binary.
    pub fn install_file(&self, host: &Host, path: &Path) {
        host.sh(&format!(
            "ln -s {} {INSTALLED}.new; mv -T {INSTALLED}.new {INSTALLED}",
            path.display()
        ));
    }
}

/// In the embedded object, makes each program end with `r = -1` (64 bits) where it has `w = -1`
/// (32 bits), which is the same to tc: it takes an `int`.
fn change_programs(binary: &mut [u8]) {
    let object = embedded_object(binary);
    // In whichever register the compiler has it.
    let place = |operation, register| [operation, register, 0, 0, 0xff, 0xff, 0xff, 0xff];
    let places: usize = (0..10)
        .map(|register| replace(object, &place(0xb4, register), &place(0xb7, register)))
        .sum();
    assert!(places >= 4, "{places} ends of programs in the object");
}

/// The eBPF object in the binary: an ELF file whose machine is `EM_BPF`, up to the end of its
/// section headers, which come last.
fn embedded_object(binary: &mut [u8]) -> &mut [u8] {
    const EM_BPF: u16 = 247;
    let half = |bytes: &[u8], at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let start = (1..binary.len() - 64).find(|start| {
        let header = &binary[*start..*start + 64];
        header.starts_with(b"\x7fELF") && half(header, 18) == EM_BPF
    });
    let start = start.expect("an eBPF object in the binary");
    let header = &binary[start..start + 64];
    let sections = header[40..48].first_chunk().expect("eight bytes");
    let sections = usize::try_from(u64::from_le_bytes(*sections)).expect("an offset");
    let length = sections + usize::from(half(header, 58)) * usize::from(half(header, 60));
    &mut binary[start..start + length]
}

/// Replaces every occurrence by as many bytes, and returns how many there were.
fn replace(bytes: &mut [u8], old: &[u8], new: &[u8]) -> usize {
    assert_eq!(old.len(), new.len());
    let mut places = 0;
    let mut at = 0;
    while let Some(found) = find(&bytes[at..], old) {
        at += found;
        bytes[at..at + old.len()].copy_from_slice(new);
        at += old.len();
        places += 1;
    }
    places
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes
        .windows(wanted.len())
        .position(|window| window == wanted)
}
