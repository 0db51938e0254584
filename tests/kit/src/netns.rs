//! Two cables between this machine and a network namespace. One carries SSH and can be cut; the other carries what the
//! far machine wants of the rest of the world, so that its agents do not notice.

use std::net::Ipv4Addr;
use std::process::Command;

/// How many pairs of cables one machine can have at a time: all of 10.213.0.0/16, eight addresses for each.
const PAIRS: u32 = 8_192;
/// The hardware address that no device has: what is sent there is lost without a word.
const NOBODY: &str = "02:00:00:00:00:99";

/// The cables to one network namespace. They are gone when dropped.
pub(crate) struct Cables {
    number: u32,
    /// A process in the namespace.
    pid: u32,
}

#[derive(Clone, Copy)]
enum Cable {
    Ssh = 0,
    World = 1,
}

#[derive(Clone, Copy)]
enum End {
    Near = 1,
    Far = 2,
}

impl Cables {
    /// Lays the cables to the namespace of a process.
    ///
    /// # Panics
    /// When the kernel does not let us, with what it said.
    pub(crate) fn lay(pid: u32) -> Self {
        let first = std::process::id() % PAIRS;
        let number = (first..PAIRS).chain(0..first).find(|&number| add(number, pid, Cable::Ssh));
        // Whoever made the first device has the number, among all tests that run now.
        let cables = Self { number: number.expect("fewer tests run than there are numbers"), pid };
        assert!(
            add(cables.number, pid, Cable::World),
            "{} is not ours alone",
            name(cables.number, Cable::World)
        );
        for cable in [Cable::Ssh, Cable::World] {
            for end in [End::Near, End::Far] {
                let address = format!("{}/30", cables.address(cable, end));
                let device = cables.device(cable, end);
                cables.ip(end, &["address", "add", &address, "dev", &device]);
                cables.ip(end, &["link", "set", &device, "up"]);
            }
        }
        cables
    }

    /// Where the far machine's SSH server is.
    pub(crate) fn ssh(&self) -> Ipv4Addr {
        self.address(Cable::Ssh, End::Far)
    }

    /// Where the far machine finds servers of this one.
    pub(crate) fn world(&self) -> Ipv4Addr {
        self.address(Cable::World, End::Near)
    }

    /// From now on everything on the SSH cable is lost, in both directions, and nobody is told.
    pub(crate) fn cut(&self) {
        self.point_to(|_| NOBODY.to_owned());
    }

    /// Undoes [`cut`](Self::cut).
    pub(crate) fn mend(&self) {
        self.point_to(|end| mac(self.number, Cable::Ssh, end));
    }

    /// Says of each end of the SSH cable which hardware address is at it.
    fn point_to(&self, at: impl Fn(End) -> String) {
        for (end, other) in [(End::Near, End::Far), (End::Far, End::Near)] {
            let (address, device) =
                (self.address(Cable::Ssh, other).to_string(), self.device(Cable::Ssh, end));
            let (neighbour, at) = (["neighbour", "replace", &address], at(other));
            self.ip(end, &[&neighbour[..], &["lladdr", &at, "dev", &device, "nud", "permanent"]].concat());
        }
    }

    fn address(&self, cable: Cable, end: End) -> Ipv4Addr {
        Ipv4Addr::from_bits(
            Ipv4Addr::new(10, 213, 0, 0).to_bits() + self.number * 8 + cable as u32 * 4 + end as u32,
        )
    }

    fn device(&self, cable: Cable, end: End) -> String {
        match end {
            End::Near => name(self.number, cable),
            End::Far => far_name(cable).to_owned(),
        }
    }

    fn ip(&self, end: End, words: &[&str]) {
        let mut command = match end {
            End::Near => Command::new("ip"),
            End::Far => {
                let mut command = Command::new("nsenter");
                command.args(["--target", &self.pid.to_string(), "--net", "--", "ip"]);
                command
            }
        };
        let output = command.args(words).output().expect("iproute2 is there");
        assert!(output.status.success(), "ip {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Cables {
    fn drop(&mut self) {
        for cable in [Cable::Ssh, Cable::World] {
            // A device goes with its namespace too, and may be gone.
            let _ = Command::new("ip").args(["link", "delete", &name(self.number, cable)]).output();
        }
    }
}

/// Makes one cable. False when somebody else has one of this name.
fn add(number: u32, pid: u32, cable: Cable) -> bool {
    let (near, far) = (mac(number, cable, End::Near), mac(number, cable, End::Far));
    let made = Command::new("ip")
        .args(["link", "add", &name(number, cable), "address", &near, "type", "veth"])
        .args(["peer", "name", far_name(cable), "address", &far, "netns", &pid.to_string()])
        .output()
        .expect("iproute2 is there");
    let said = String::from_utf8_lossy(&made.stderr).into_owned();
    assert!(made.status.success() || said.contains("File exists"), "no network devices for a test: {said}");
    made.status.success()
}

fn name(number: u32, cable: Cable) -> String {
    match cable {
        Cable::Ssh => format!("optio{number}s"),
        Cable::World => format!("optio{number}w"),
    }
}

fn far_name(cable: Cable) -> &'static str {
    match cable {
        Cable::Ssh => "ssh",
        Cable::World => "world",
    }
}

fn mac(number: u32, cable: Cable, end: End) -> String {
    let [_, _, high, low] = number.to_be_bytes();
    format!("02:0c:{high:02x}:{low:02x}:{:02x}:{:02x}", cable as u8, end as u8)
}
