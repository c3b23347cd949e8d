//! A machine for one test: a container with systemd as its first process and this machine's
//! programs, in which tidegate is installed as `docs/install.md` says.

use super::support::installed;
use super::support::process::Process;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Its name, and so its gateway's.
pub const NAME: &str = "gw-01";

pub const CONFIG: &str = "/etc/tidegate/tidegate.toml";
pub const STATE: &str = "/var/lib/tidegate";

/// How large its log's filesystem is.
const DISK: &str = "48m";

pub struct Machine {
    root: PathBuf,
    /// Its first process, as this side counts.
    leader: u32,
    _nspawn: Process,
}

impl Machine {
    /// Starts it, and waits until systemd is done with that.
    pub async fn boot() -> Machine {
        // All of it goes with the namespaces that the test runs in.
        let place = tempfile::tempdir().expect("a temporary directory").keep();
        let root = place.join("root");
        for directory in ["root/usr", "root/etc/udev/rules.d", "root/etc/systemd/system", "root/root", "upper", "work"]
        {
            std::fs::create_dir_all(place.join(directory)).expect("a directory");
        }
        let layers = format!("lowerdir=/usr,upperdir={0}/upper,workdir={0}/work", place.display());
        succeed(Command::new("mount").args(["-t", "overlay", "overlay", "-o", &layers]).arg(root.join("usr")));
        for name in ["bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
            if let Ok(target) = std::fs::read_link(Path::new("/").join(name)) {
                symlink(target, root.join(name)).expect("a link");
            }
        }
        // With an identity this is no first boot, at which every service there is were enabled.
        let files = [
            ("machine-id", "7c1de9a7e0c04f0f8d2b6a4f5e3d2c1b\n"),
            ("hosts", "127.0.0.1 localhost\n::1 localhost\n"),
            ("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
        ];
        for (name, text) in files {
            std::fs::write(root.join("etc").join(name), text).expect("a file");
        }
        let mut command = Command::new(installed("systemd-nspawn").expect("systemd-nspawn is installed"));
        command.args(["--quiet", "--register=no", "--keep-unit", "--link-journal=no", "--console=pipe"]);
        command.args(["--resolv-conf=off", "--timezone=off", "--boot"]);
        command.arg(format!("--machine={NAME}")).arg(format!("--tmpfs={STATE}:size={DISK},mode=755"));
        command.arg(format!("--directory={}", root.display())).env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1");
        let log = place.join("nspawn.log");
        let mut nspawn = Process::start(command, &log);
        let children = format!("/proc/{0}/task/{0}/children", nspawn.id());
        let mut machine = None;
        super::support::eventually("the machine is up", async || {
            assert!(nspawn.is_running(), "{}", std::fs::read_to_string(&log).unwrap_or_default());
            let first = std::fs::read_to_string(&children).ok();
            let Some(leader) = first.and_then(|text| text.trim().parse().ok()) else { return false };
            let state = inside(leader).args(["systemctl", "is-system-running"]).output().expect("nsenter runs");
            let up = ["running", "degraded"].contains(&String::from_utf8_lossy(&state.stdout).trim());
            machine = up.then_some(leader);
            up
        })
        .await;
        Machine { root, leader: machine.expect("it is up"), _nspawn: nspawn }
    }

    /// Runs the commands of `docs/install.md`, up to those that look whether it is well; its
    /// broker is the one of the shipped configuration.
    pub fn install(&self) {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR"));
        let files = [
            "config/tidegate.toml",
            "systemd/tidegate.service",
            "systemd/tidegate.sysusers",
            "systemd/70-tidegate.rules",
        ];
        for name in files {
            self.place(&format!("/root/{name}"), &std::fs::read(sources.join(name)).expect("what ships"), 0o644);
        }
        let binary = std::fs::read(env!("CARGO_BIN_EXE_tidegate")).expect("the binary");
        self.place("/root/tidegate", &binary, 0o755);
        let page = std::fs::read_to_string(sources.join("docs/install.md")).expect("the page");
        let (page, _) = page.split_once("\n## 4.").expect("a section on how to see whether it is well");
        // Nobody edits, and no device is plugged in, which udev is for.
        let commands = page.lines().filter_map(|line| line.strip_prefix("sudo ")).filter(|line| {
            let program = line.split(' ').next();
            !matches!(program, Some("nano" | "udevadm"))
        });
        let script: String = commands.map(|command| format!("{command}\n")).collect();
        for part in ["/usr/local/bin/tidegate", "systemd-sysusers", "systemctl enable --now tidegate"] {
            assert!(script.contains(part), "no {part} in what docs/install.md says:\n{script}");
        }
        self.shell(&format!("cd /root\n{script}"));
    }

    /// A command that runs on the machine, as root.
    pub fn command(&self, program: &str) -> Command {
        let mut command = inside(self.leader);
        command.arg(program);
        command
    }

    /// Runs a script there that succeeds; what it says.
    pub fn shell(&self, script: &str) -> String {
        let output = succeed(self.command("sh").args(["-euc", script]));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Writes a file of root's there.
    pub fn place(&self, path: &str, content: &[u8], mode: u32) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        std::fs::write(&path, content).expect("a file");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("a mode");
    }

    /// Where this side finds a file of the machine's.
    pub fn path(&self, path: &str) -> PathBuf {
        // Its own mounts included, which the directory it was started from does not show.
        let seen = PathBuf::from(format!("/proc/{}/root{path}", self.leader));
        if path.starts_with(STATE) { seen } else { self.root.join(path.trim_start_matches('/')) }
    }

    /// Gives the gateway another configuration; whether it starts with that.
    pub fn configure(&self, config: &str) -> bool {
        self.place(CONFIG, config.as_bytes(), 0o644);
        self.command("systemctl").args(["restart", "tidegate"]).output().expect("nsenter runs").status.success()
    }

    /// A property of a unit, as systemd has it.
    pub fn property(&self, unit: &str, name: &str) -> String {
        self.shell(&format!("systemctl show --value --property={name} {unit}"))
    }
}

/// A command in all namespaces of that process, which knows nothing of this side's settings.
fn inside(leader: u32) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["--target", &leader.to_string(), "--all"]).env_clear();
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|why| panic!("{command:?}: {why}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
    output
}
