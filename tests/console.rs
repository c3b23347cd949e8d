//! What the power-cut test makes of an emulated machine's console.

#[path = "torture/console.rs"]
mod recogniser;

use recogniser::refused_disk;

const REFUSED: &str = "waiting\r
[    4.1] JBD2: journal transaction 148 on vda-8 is corrupt.\r
[    4.1] EXT4-fs (vda): error loading journal\r
mount: mounting /dev/vda on /data failed: Structure needs cleaning\r
[    4.2] Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000ff00\r
";

#[test]
fn a_file_system_that_cannot_be_mounted_is_told_from_a_gateway_that_does_not_start() {
    let why = refused_disk(REFUSED).expect("it was not mounted");
    assert!(why.starts_with("[    4.1] JBD2: journal transaction 148 on vda-8 is corrupt.; "), "{why}");
    assert!(why.ends_with("failed: Structure needs cleaning"), "{why}");
    for other in [
        "waiting\nstarting the gateway\ntidegate: cannot open the log\nKernel panic - not syncing",
        "waiting\n[ 4.1] EXT4-fs (vda): recovery complete\nstarting the gateway\n",
        "waiting\nKernel panic - not syncing: Attempted to kill init!",
        "",
    ] {
        assert_eq!(refused_disk(other), None, "{other}");
    }
}
