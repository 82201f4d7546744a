//! Other builds of the binary under test, to upgrade to and to downgrade from.
//!
//! Made by changing a copy, since compiling the programs and the daemon again takes minutes: what
//! differs is what the daemon can tell builds apart by, and the instructions that the kernel runs.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use crate::{host::Host, lab::Lab};

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
    /// Whether the maps of both have one layout.
    #[must_use]
    pub fn shares_maps_with(self, other: Self) -> bool {
        (self == Self::OtherAbi) == (other == Self::OtherAbi)
    }
}

/// The builds as files; they go with this.
#[derive(Debug)]
pub struct Builds {
    present: PathBuf,
    abi: String,
    directory: PathBuf,
}

impl Builds {
    /// Makes the other builds of `binary`, whose maps' layout has the hash `abi`, below `within`.
    ///
    /// # Panics
    /// If the binary is not what it is taken for, or there is no room.
    #[must_use]
    pub fn make(binary: &str, abi: &str, within: &str) -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let directory = Path::new(within).join(format!("builds-{}-{number}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory");
        let builds = Self {
            present: PathBuf::from(binary),
            abi: abi.to_owned(),
            directory,
        };
        let mut bytes = fs::read(binary).expect("the binary");
        change_programs(&mut bytes);
        builds.write(Build::SameAbi, &bytes);
        let other = builds.abi(Build::OtherAbi);
        let places = replace(&mut bytes, abi.as_bytes(), other.as_bytes());
        assert!(places > 0, "the binary does not hold its ABI {abi}");
        builds.write(Build::OtherAbi, &bytes);
        builds
    }

    /// The hash that names the directory of a build's maps.
    ///
    /// # Panics
    /// If the hash of the binary under test is not hexadecimal.
    #[must_use]
    pub fn abi(&self, build: Build) -> String {
        match build {
            Build::Present | Build::SameAbi => self.abi.clone(),
            // Every digit differs.
            Build::OtherAbi => self
                .abi
                .chars()
                .map(|digit| {
                    let value = digit.to_digit(16).expect("a hexadecimal digit");
                    char::from_digit(15 - value, 16).expect("a hexadecimal digit")
                })
                .collect(),
        }
    }

    fn path(&self, build: Build) -> PathBuf {
        match build {
            Build::Present => self.present.clone(),
            other => self.directory.join(format!("oncache-{other:?}")),
        }
    }

    fn write(&self, build: Build, binary: &[u8]) {
        let path = self.path(build);
        fs::write(&path, binary).expect("room for a binary");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("an executable");
    }

    /// Two hosts that run what is installed on them: the binary under test, for a start.
    #[must_use]
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

impl Drop for Builds {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.directory).ok();
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
