//! The configuration through its public door: everything wrong is told at once,
//! where it stands and how to put it right; no text makes it panic.

use proptest::prelude::*;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tidegate::config::{self, Config, HistoryWithin, Parity};

const SHIPPED: &str = include_str!("../config/tidegate.toml");
/// The sections without which there is no gateway.
const TCP: &str = "[[tcp]]\n";
const MQTT: &str = "[[mqtt]]\nbrokers = ['mqtt://localhost']\n";

fn env(name: &str) -> Option<String> {
    (name == "HOST").then(|| "broker.example.com".into())
}

fn parse(text: &str) -> Result<Config, String> {
    config::parse(text, Path::new("f.toml"), &env).map_err(|problems| problems.to_string())
}

fn good(text: &str) -> Config {
    parse(text).unwrap_or_else(|problems| panic!("{text}\n{problems}"))
}

/// What `text` is refused for, a line a problem, without the file's name.
fn problems(text: &str) -> Vec<String> {
    let all = parse(text).expect_err(text);
    all.lines().map(|line| line.strip_prefix("f.toml:").expect("a problem starts with the file").to_owned()).collect()
}

/// That a configuration with `lines` in `[section]` has one problem, with this key
/// and these words in it.
fn refused(section: &str, lines: &str, key: &str, words: &str) {
    let text = match section {
        "tcp" => format!("{MQTT}{TCP}{lines}"),
        "mqtt" if lines.contains("brokers") => format!("{TCP}[[mqtt]]\n{lines}"),
        "mqtt" => format!("{TCP}{MQTT}{lines}"),
        "serial" if lines.starts_with("path") => format!("{MQTT}[[serial]]\n{lines}"),
        "serial" => format!("{MQTT}[[serial]]\npath = '/dev/ttyS0'\n{lines}"),
        _ => format!("{TCP}{MQTT}[{section}]\n{lines}"),
    };
    let found = problems(&text);
    let [one] = &found[..] else { panic!("{text}\nhas these problems: {found:#?}") };
    assert!(one.contains(&format!(": {key}: ")) && one.contains(words), "{text}\n{one:?} lacks {key:?}, {words:?}");
    assert!(one.contains("; "), "{one:?} gives no fix");
}

#[test]
fn everything_wrong_is_told_at_once_with_its_line() {
    let found = problems(
        "[gateway]
log_level = 'inof'
[[tcp]]
lisen = '127.0.0.1:1'
max_frame = 'big'
[[mqtt]]
broker = ['mqtt://a']
window = 500
keep_alive = 30
[[mqtt]]
brokers = [
  'mqtt://a',
  'http://b',
]
version = '4'
[stor]
directory = '/tmp'
[devices]
idle_timeout = 'soon'
heartbeat_interval = '20m'
",
    );
    let expected = [
        "2: gateway.log_level: unknown level `inof`; did you mean `info`?",
        "4: tcp[0].lisen: unknown key `lisen`; did you mean `listen`?",
        "5: tcp[0].max_frame: ",
        "7: mqtt[0].broker: unknown key `broker`; did you mean `brokers`?",
        "8: mqtt[0].window: 500 is out of range; give 1 to 100",
        "9: mqtt[0].keep_alive: 30 is not a duration; give a number with ms, s, m, h or days: write it like keep_alive = \"30s\"",
        "10: mqtt[1].name: mqtt[0] is named `mqtt` already; give each a `name` of its own",
        "11: mqtt[1].brokers[1]: only the schemes mqtt, mqtts, ws and wss are known; write mqtt://HOST[:PORT] or \
         mqtts://HOST[:PORT], or ws:// or wss:// for MQTT over WebSocket",
        "15: mqtt[1].version: unknown value `4`, expected `3.1.1` or `5`; write it like version = \"3.1.1\"",
        "16: stor: unknown section `stor`; did you mean `store`?",
        "19: devices.idle_timeout: ",
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found:?} is not {expected:?}");
    }
}

#[test]
fn the_display_of_a_problem_is_one_line_with_file_line_key_what_and_fix() {
    let text = format!("{TCP}{MQTT}window = 500");
    let problems = config::parse(&text, Path::new("/etc/tidegate/tidegate.toml"), &env).expect_err("500 is too many");
    assert_eq!(
        problems.to_string(),
        "/etc/tidegate/tidegate.toml:4: mqtt[0].window: 500 is out of range; give 1 to 100"
    );
    let problem = problems.iter().next().expect("there is one");
    assert_eq!((problem.line, problem.key.as_str()), (Some(4), "mqtt[0].window"));
}

#[test]
fn values_that_were_given_arrive() {
    let config = good(
        "[gateway]\nid = 'gw-01'\n[[serial]]\npath = '/dev/ttyS0'\nparity = 'even'\n[store]\nhistory_within = 'off'\n\
         max_size = '64MiB'\n[[mqtt]]\nbrokers = ['mqtt://a', 'mqtts://b:1']\nkeep_alive = '1m 5s'\n",
    );
    assert_eq!(config.gateway.id.as_ref().map(|id| id.as_str()), Some("gw-01"));
    assert_eq!((config.tcp.len(), config.serial[0].parity), (0, Parity::Even));
    assert_eq!((config.store.history_within, config.store.max_size.as_u64()), (HistoryWithin::Off, 64 << 20));
    assert_eq!((config.mqtt[0].brokers.len(), config.mqtt[0].keep_alive), (2, Duration::from_secs(65)));
}

#[test]
fn the_readme_s_configuration_is_good() {
    let readme = include_str!("../README.md");
    let (_, rest) = readme.split_once("```toml\n").expect("the README shows a configuration");
    let (text, _) = rest.split_once("```").expect("it ends");
    let config = good(text);
    assert_eq!((config.tcp.len(), config.serial.len(), config.mqtt.len()), (1, 1, 1));
}

#[test]
fn what_is_not_toml_is_one_problem_with_line_and_column() {
    let found = problems("[gateway]\nlog_level = info\n");
    assert!(found.len() == 1 && found[0].starts_with("2: column 13: "), "{found:?}");
    let found = problems("[gateway]\n[gateway]\n");
    assert!(found.len() == 1 && found[0].starts_with("2: column 2: duplicate key"), "{found:?}");
    assert_eq!(problems("x = \"").len(), 1);
}

#[test]
fn a_section_of_the_wrong_form_is_told_and_read_all_the_same() {
    let found = problems("[tcp]\nlisen = 1\n[mqtt]\nbrokers = ['mqtt://a']\nwindow = 0\n[[store]]\nmax_size = 1\n");
    let expected = [
        "1: tcp: there may be several such sections; write [[tcp]]",
        "2: tcp[0].lisen: ",
        "3: mqtt: there may be several such sections; write [[mqtt]]",
        "5: mqtt[0].window: 0 is out of range",
        "6: store: there can be only one such section; write [store], once",
        "7: store.max_size: 1B is out of range; give 8MiB to 64TiB",
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found:?} is not {expected:?}");
    }
    let found = problems("tcp = 5\nmqtt = [1]\ngateway = 'x'\n");
    assert_eq!(found.len(), 3, "{found:#?}");
    assert!(found.iter().all(|problem| problem.contains("is not a section")), "{found:#?}");
}

#[test]
fn a_gateway_without_links_or_sinks_is_refused() {
    let found = problems("");
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].starts_with(" tcp: there is no [[tcp]] and no [[serial]] section"), "{found:?}");
    assert!(
        found[1].starts_with(" mqtt: there is no [[mqtt]] or [[file]] section: readings would never leave"),
        "{found:?}"
    );
}

#[test]
fn unknown_keys_come_with_what_was_meant_or_what_there_is() {
    refused("store", "max-size = '1GiB'", "store.max-size", "did you mean `max_size`?");
    refused("http", "Listen = ''", "http.Listen", "did you mean `listen`?");
    refused("http", "password = ''", "http.password", "remove it; known are enabled, token_file");
    refused("http", "'a\\b' = 1", r#"http."a\\b""#, "unknown key");
    refused("http", "a.b.c = 1", "http.a", "unknown key");
    refused("nonsense", "", "nonsense", "known are gateway, tcp, serial");
}

#[test]
fn variables_are_replaced_in_every_string_value() {
    let config =
        good(&format!("{TCP}[[mqtt]]\nbrokers = ['mqtts://${{HOST}}:1', 'mqtt://a']\nusername = '$${{HOST}}'\n"));
    assert_eq!(config.mqtt[0].brokers[0], "mqtts://broker.example.com:1");
    assert_eq!(config.mqtt[0].username.as_deref(), Some("${HOST}"));

    let time = |name: &str| (name == "TIME").then(|| "7s".to_owned());
    let text = format!("{TCP}{MQTT}keep_alive = '${{TIME}}'");
    let config = config::parse(&text, Path::new("f"), &time).expect("a duration may come from the environment");
    assert_eq!(config.mqtt[0].keep_alive, Duration::from_secs(7));
}

#[test]
fn variables_that_are_not_set_are_problems_each() {
    let found = problems(&format!("{TCP}[[mqtt]]\nbrokers = ['mqtt://${{A}}', 'mqtt://${{B}}']\n"));
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].starts_with("3: mqtt[0].brokers: the environment variable `A` is not set; "), "{found:?}");
}

#[test]
fn the_gateway_s_keys_are_checked() {
    refused("gateway", "id = 'a b'", "gateway.id", "contains ' '");
    refused("gateway", "log_level = ''", "gateway.log_level", "is empty");
    refused("gateway", "log_level = 'info,a=b=c'", "gateway.log_level", "write a level");
    refused("gateway", "log_level = 'debgu,tidegate=info'", "gateway.log_level", "did you mean `debug`?");
    refused("gateway", "log_level = 'warning'", "gateway.log_level", "did you mean `warn`?");
    refused("gateway", "log_level = 'verbose'", "gateway.log_level", "did you mean `debug`?");
    refused("gateway", "log_level = 'warn tidegate=debug'", "gateway.log_level", "a comma between two");
    refused("gateway", "log_level = 'tidegate'", "gateway.log_level", "write a level (off, error, warn");
    refused("gateway", "log_level = '[{a=(a|b)*a(a|b)}]=info'", "gateway.log_level", "write it like");
    refused("gateway", "worker_threads = 0", "gateway.worker_threads", "give 1 to 64");
    refused("gateway", "worker_threads = -1", "gateway.worker_threads", "write it like worker_threads = 2");
    refused("gateway", "shutdown_timeout = '6m'", "gateway.shutdown_timeout", "6m is out of range; give 1s to 5m");
    good(&format!("{TCP}{MQTT}[gateway]\nlog_level = 'WARN,tidegate::store=trace'"));
}

#[test]
fn tcp_links_are_checked() {
    refused("tcp", "name = 'a/b'", "tcp[0].name", "contains '/'");
    refused("tcp", "listen = 'localhost:1'", "tcp[0].listen", "write listen = \"127.0.0.1:1\"");
    refused("tcp", "max_connections = 0", "tcp[0].max_connections", "out of range");
    refused("tcp", "handshake_timeout = '0s'", "tcp[0].handshake_timeout", "out of range");
    refused("tcp", "frame_timeout = '584542046090years'", "tcp[0].frame_timeout", "out of range");
    refused("tcp", "max_frame = '2MiB'", "tcp[0].max_frame", "2MiB is out of range; give 256B to 1MiB");
    refused("tcp", "[[tcp]]\nlisten = '127.0.0.1:1'", "tcp[1].name", "tcp[0] is named `tcp` already");
    refused("tcp", "[[tcp]]\nname = 'b'", "tcp[1].listen", "tcp[0] listens on 127.0.0.1:7411 already");
    refused("tcp", "[[tcp]]\nname = 'b'\nlisten = '0.0.0.0:7411'", "tcp[1].listen", "already");
    good(&format!("{MQTT}[[tcp]]\nlisten = '[::1]:0'\n[[tcp]]\nname = 'b'\nlisten = '[::1]:0'"));
}

#[test]
fn serial_links_are_checked() {
    refused("serial", "path = ''", "serial[0].path", "is empty");
    refused("serial", "[[serial]]\nname = 'b'", "serial[1].path", "`usb`");
    refused("serial", "usb = '1a86:7523'", "serial[0].usb", "named by one of them");
    refused("serial", "usb = '1a86'", "serial[0].usb", "write it like usb = \"1a86:7523\"");
    refused("serial", "usb_serial = 'A*'", "serial[0].usb_serial", "`usb`, which is missing");
    refused("serial", "usb_interface = 300", "serial[0].usb_interface", "300 is not a whole number from 0 to 255");
    let twice = "[[serial]]\nname = 'b'\nusb = '1a86:7523'\n[[serial]]\nname = 'c'\nusb = '1a86:7523'";
    refused("serial", twice, "serial[2].usb", "serial[1] means the same adapter");
    refused("serial", "rs485 = true\nflow_control = 'hardware'", "serial[0].flow_control", "needs RTS");
    refused("serial", "rs485_rx_during_tx = true", "serial[0].rs485_rx_during_tx", "add rs485 = true");
    let long = "rs485 = true\nrs485_delay_after_send = '101ms'";
    refused("serial", long, "serial[0].rs485_delay_after_send", "give 0s to 100ms");
    let fine = "rs485 = true\nrs485_delay_before_send = '1500us'";
    refused("serial", fine, "serial[0].rs485_delay_before_send", "give whole ones");
    refused("serial", "baud = 0", "serial[0].baud", "out of range");
    refused("serial", "data_bits = 9", "serial[0].data_bits", "give 5 to 8");
    refused("serial", "stop_bits = 3", "serial[0].stop_bits", "give 1 to 2");
    refused("serial", "parity = 'both'", "serial[0].parity", "expected one of `none`, `odd`, `even`");
    refused("serial", "reopen_interval = '0s'", "serial[0].reopen_interval", "out of range");
    refused("serial", "[[serial]]\nname = 'b'\npath = '/dev/ttyS0'", "serial[1].path", "serial[0] has this port");
    refused("serial", "[[tcp]]\nname = 'serial'", "serial[0].name", "tcp[0] is named `serial`");
}

#[test]
fn http_is_checked() {
    refused("http", "listen = '0.0.0.0:80'", "http.listen", "give `token_file`");
    refused("http", "listen = '127.0.0.1:7411'", "http.listen", "tcp[0] listens on");
    refused("http", "allowed_origins = ['http://a/']", "http.allowed_origins", "write it as browsers do");
    refused("http", "max_connections = 0", "http.max_connections", "out of range");
    refused("http", "max_connections_per_address = 0", "http.max_connections_per_address", "out of range");
    refused("http", "idle_timeout = '20s'", "http.idle_timeout", "give more than heartbeat_interval, 30s");
    refused("http", "heartbeat_interval = '0s'", "http.heartbeat_interval", "out of range");
    refused("http", "handshake_timeout = '0s'", "http.handshake_timeout", "out of range");
    refused("http", "max_frame = '2MiB'", "http.max_frame", "give 256B to 1MiB");
    refused("http", "frame_timeout = '2h'", "http.frame_timeout", "out of range");
    refused("http", "cert_file = 'a'", "http.cert_file", "of no use without `key_file`");
    refused("http", "client_ca_file = 'a'", "http.client_ca_file", "does not speak TLS");
    good(&format!("{TCP}{MQTT}[http]\nlisten = '[::1]:80'"));
    good(&format!("{TCP}{MQTT}[http]\nlisten = '0.0.0.0:80'\ntoken_file = '/t'\nallowed_origins = ['null']"));
    good(&format!("{TCP}{MQTT}[http]\nenabled = false\nlisten = '0.0.0.0:80'"));
}

#[test]
fn devices_over_websocket_are_links_enough_and_their_name_is_taken() {
    good(&format!("{MQTT}[http]\ndevices = true"));
    let found = problems(&format!("{MQTT}[http]\nenabled = false\ndevices = true"));
    assert!(found.len() == 1 && found[0].contains("no device could connect"), "{found:?}");
    let found = problems(&format!("{MQTT}{TCP}name = 'websocket'\n[http]\ndevices = true"));
    assert!(found.len() == 1 && found[0].contains("http is named `websocket` already"), "{found:?}");
    good(&format!("{MQTT}{TCP}name = 'websocket'"));
}

#[test]
fn device_limits_are_checked() {
    refused("devices", "heartbeat_interval = '1ms'", "devices.heartbeat_interval", "give 1s to 1day");
    refused("devices", "idle_timeout = '30s'", "devices.idle_timeout", "give more than heartbeat_interval, 30s");
    refused("devices", "window = 0", "devices.window", "out of range");
    refused("devices", "message_burst = 0", "devices.message_burst", "give 1 to 1000000");
    refused("devices", "allow = ['pump-*', 'valve 3']", "devices.allow", "no name contains ' '; give letters");
    refused("devices", "deny = ['']", "devices.deny", "matches no name");
    good(&format!("{TCP}{MQTT}[devices]\nallow = ['hub/*', 'p?mp-1.0_a']"));
    refused("devices", "max_message_rate = 1000001", "devices.max_message_rate", "give 0 to 1000000");
}

#[test]
fn the_store_s_keys_are_checked() {
    refused("store", "directory = ''", "store.directory", "is empty");
    refused("store", "commit_within = '2h'", "store.commit_within", "give 0s to 1h");
    refused("store", "history_within = '1ms'", "store.history_within", "give 250ms or more, or \"off\"");
    refused("store", "history_within = 'never'", "store.history_within", "or \"off\"");
    refused("store", "max_size = '1MiB'", "store.max_size", "out of range");
    refused("store", "max_pending = '1KiB'", "store.max_pending", "out of range");
    refused("store", "segment_size = '32MiB'", "store.segment_size", "more than max_pending; give 16MiB or less");
    refused("store", "max_size = '8MiB'\nsegment_size = '5MiB'", "store.segment_size", "give 4MiB or less");
    refused("store", "durability = 'none'", "store.durability", "expected `full` or `normal`");
}

#[test]
fn brokers_and_topics_are_checked() {
    refused("mqtt", "brokers = []", "mqtt[0].brokers", "names no broker");
    refused("mqtt", "brokers = 'mqtt://a'", "mqtt[0].brokers", "write it like brokers = [\"mqtt://localhost\"]");
    refused("mqtt", "brokers = ['mqtt://u:p@a']", "mqtt[0].brokers[0]", "`username` and `password_file`");
    for prefix in ["", "a//b", "/a", "a/", "a/+", "#", "$SYS/a", "a\\u0000b"] {
        refused("mqtt", &format!("prefix = \"{prefix}\""), "mqtt[0].prefix", "give topic levels");
    }
    for id in [String::new(), "a\\u0000".into(), "x".repeat(129)] {
        refused("mqtt", &format!("client_id = \"{id}\""), "mqtt[0].client_id", "is no client id");
    }
    let twice = "client_id = 'a'\n[[mqtt]]\nname = 'b'\nclient_id = 'a'\nbrokers = ['mqtt://localhost:1883']";
    refused("mqtt", &format!("brokers = ['mqtt://localhost']\n{twice}"), "mqtt[1].client_id", "cut each other off");
    good(&format!(
        "{TCP}{MQTT}prefix = 'a/b'\nclient_id = 'x'\n[[mqtt]]\nname = 'b'\nclient_id = 'x'\nbrokers = ['mqtt://b']"
    ));
}

#[test]
fn directories_of_files_are_checked() {
    let refused = |lines: &str, key: &str, words: &str| {
        let found = problems(&format!("{TCP}[[file]]\n{lines}"));
        let [one] = &found[..] else { panic!("{lines}\nhas these problems: {found:#?}") };
        assert!(one.contains(&format!(": {key}: ")) && one.contains(words) && one.contains("; "), "{lines}\n{one:?}");
    };
    refused("", "file[0].directory", "is not given");
    refused("directory = 'stick'", "file[0].directory", "is not absolute");
    let at = "directory = '/media/usb/tidegate'\n";
    refused(&format!("{at}[[file]]\nname = 'b'\n{at}"), "file[1].directory", "a directory of its own");
    refused(&format!("{at}rotate_size = '1KiB'"), "file[0].rotate_size", "out of range");
    refused(&format!("{at}rotate_after = '1s'"), "file[0].rotate_after", "out of range");
    refused(&format!("{at}flush_within = '2m'"), "file[0].flush_within", "out of range");
    refused(&format!("{at}max_total = '20MiB'"), "file[0].rotate_size", "at least six times rotate_size");
    refused(&format!("{at}when_full = 'stop'"), "file[0].when_full", "expected `hold` or `drop-oldest`");
    good(&format!("{TCP}[[file]]\n{at}format = 'csv'\nwhen_full = 'drop-oldest'"));
}

#[test]
fn ways_to_a_broker_are_checked() {
    for (lines, key, words) in [
        ("websocket_headers = ['X-Key: 1']", "mqtt[0].websocket_headers", "no broker is reached over WebSocket"),
        ("proxy = 'proxy:3128'", "mqtt[0].proxy", "the scheme is missing"),
        ("proxy = 'http://a:b@proxy:3128'", "mqtt[0].proxy", "does not belong here"),
        ("proxy_username = 'gw'", "mqtt[0].proxy_username", "of no use without `proxy`"),
        ("proxy = 'http://p:1'\nproxy_password_file = '/x'", "mqtt[0].proxy_password_file", "without a name"),
        ("proxy = 'http://p:1'\nproxy_username = 'a:b'", "mqtt[0].proxy_username", "contains a colon"),
        ("bind = 'a b'", "mqtt[0].bind", "neither a network interface nor an address"),
        ("bind = ['eth0', 'a b']", "mqtt[0].bind[1]", "neither a network interface nor an address"),
        ("bind = ['eth0', 'eth0']", "mqtt[0].bind[1]", "stands there twice"),
        ("bind = 5", "mqtt[0].bind", "5 is not a list in brackets"),
        ("dscp = 64", "mqtt[0].dscp", "64 is out of range; give 0 to 63"),
    ] {
        refused("mqtt", lines, key, words);
    }
    let config = good(
        "[[tcp]]\n[[mqtt]]\nbrokers = ['wss://b/ws']\nwebsocket_headers = ['X-Key: ${HOST}']\nproxy = 'environment'\n\
         bind = 'wwan0'\ndscp = 46\n",
    );
    assert_eq!(config.mqtt[0].dscp, 46);
    let config = good("[[tcp]]\n[[mqtt]]\nbrokers = ['mqtt://a', 'mqtt://b']\nbind = ['eth0', '10.0.0.7']\n");
    let ways: Vec<_> = config.mqtt[0].ways().expect("valid").iter().map(ToString::to_string).collect();
    let expected =
        ["mqtt://a:1883 by eth0", "mqtt://b:1883 by eth0", "mqtt://a:1883 by 10.0.0.7", "mqtt://b:1883 by 10.0.0.7"];
    assert_eq!(ways, expected);
}

#[test]
fn mqtt_limits_are_checked() {
    refused("mqtt", "max_batch = '1B'", "mqtt[0].max_batch", "give 1KiB to");
    refused("mqtt", "max_batch = '257KiB'", "mqtt[0].max_batch", "more than max_packet; give 256KiB or less");
    refused("mqtt", "max_packet = '256MiB'", "mqtt[0].max_packet", "give 2KiB to 268435455B");
    refused("mqtt", "keep_alive = '1s'", "mqtt[0].keep_alive", "give 5s to 18h");
    refused("mqtt", "keep_alive = '19h'", "mqtt[0].keep_alive", "give 5s to 18h");
    refused("mqtt", "connect_timeout = '0s'", "mqtt[0].connect_timeout", "give 1s to 5m");
    refused("mqtt", "backoff_min = '0s'", "mqtt[0].backoff_min", "give 10ms to");
    refused("mqtt", "backoff_min = '2m'", "mqtt[0].backoff_min", "more than backoff_max; give 1m or less");
    refused("mqtt", "window = 70000", "mqtt[0].window", "write it like window = 32");
    refused("mqtt", "window = '32'", "mqtt[0].window", "write it like window = 32");
}

#[test]
fn credentials_must_make_sense_together() {
    let tls = "brokers = ['mqtts://a']";
    refused("mqtt", "password_file = '/p'", "mqtt[0].password_file", "give `username` too");
    refused("mqtt", &format!("{tls}\ncert_file = '/c'"), "mqtt[0].cert_file", "without `key_file`");
    refused("mqtt", &format!("{tls}\nkey_file = '/k'"), "mqtt[0].key_file", "without `cert_file`");
    refused("mqtt", "ca_file = '/c'", "mqtt[0].ca_file", "no broker is reached over TLS");
    let pin = "broker_pins = ['sha256/47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=']";
    refused("mqtt", pin, "mqtt[0].broker_pins", "no broker is reached over TLS");
    refused("mqtt", &format!("{tls}\n{pin}\nca_file = '/c'"), "mqtt[0].ca_file", "of no use beside broker_pins");
    refused("mqtt", &format!("{tls}\nbroker_pins = ['ab:cd']"), "mqtt[0].broker_pins[0]", "that is no SHA-256");
    good(&format!("{TCP}[[mqtt]]\n{tls}\n{pin}"));
    refused("mqtt", "cert_file = '/c'\nkey_file = '/k'", "mqtt[0].cert_file", "no broker is reached over TLS");
    good(&format!("{TCP}{MQTT}username = 'u'"));
    refused("tcp", "authentication = 'hash'", "tcp[0].authentication", "expected one of `none`, `token`, `hmac`");
    refused("tcp", "max_connections_per_address = 0", "tcp[0].max_connections_per_address", "give 1 to 1000000");
    refused("devices", "allow = ['']", "devices.allow", "matches no name");
    refused("devices", "deny = ['a', '']", "devices.deny", "matches no name");
    refused("devices", "lock_out_after = 1001", "devices.lock_out_after", "give 0 to 1000");
    refused("tcp", "cert_file = '/c'", "tcp[0].cert_file", "without `key_file`");
    refused("tcp", "key_file = '/k'", "tcp[0].key_file", "without `cert_file`");
    refused("tcp", "client_ca_file = '/a'", "tcp[0].client_ca_file", "does not speak TLS");
    good(&format!("{MQTT}{TCP}cert_file = '/c'\nkey_file = '/k'\nclient_ca_file = '/a'\n"));
    good(&format!(
        "{TCP}[[mqtt]]\nbrokers = ['mqtt://a', 'mqtts://a']\nca_file = '/c'\ncert_file = '/c'\nkey_file = '/k'"
    ));
}

/// `text` as a file that can be loaded, and what it is refused for.
fn load(directory: &Path, text: &[u8]) -> Result<Config, String> {
    let path = directory.join("tidegate.toml");
    fs::write(&path, text).expect("the file is written");
    config::load(&path).map_err(|problems| problems.to_string().replace(&path.display().to_string(), "FILE"))
}

#[test]
fn a_file_that_cannot_be_read_is_a_problem_with_a_fix() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let refusal = |path: PathBuf| config::load(&path).expect_err("it cannot be read").to_string();
    let missing = refusal(directory.path().join("none.toml"));
    assert!(
        missing.contains("none.toml: cannot be read: ") && missing.ends_with("or name another with -c FILE"),
        "{missing}"
    );
    let not_a_file = refusal(directory.path().to_owned());
    assert!(not_a_file.contains("cannot be read: "), "{not_a_file}");
    assert_eq!(
        load(directory.path(), b"# a\n# \xff\n").map(drop),
        Err("FILE:2: is not UTF-8 text; save it as UTF-8".into())
    );
    let large = load(directory.path(), &vec![b'\n'; (1 << 20) + 1]).map(drop);
    assert_eq!(large, Err("FILE: is larger than 1 MiB; give a tidegate configuration file".into()));
    assert!(load(directory.path(), SHIPPED.as_bytes()).is_ok());
}

/// As [`load`], with a look at the files that it names.
fn check(directory: &Path, text: &[u8]) -> Result<Config, String> {
    let path = directory.join("tidegate.toml");
    fs::write(&path, text).expect("the file is written");
    let checked = config::check(&path);
    assert!(checked.unseen.is_empty());
    checked.config.map_err(|problems| problems.to_string().replace(&path.display().to_string(), "FILE"))
}

#[test]
fn files_that_the_configuration_names_must_be_of_use() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let at = |name: &str| directory.path().join(name);
    let text = format!(
        "{TCP}[[mqtt]]\nbrokers = ['mqtts://a']\nusername = 'u'\npassword_file = {:?}\nca_file = {:?}\ncert_file = {:?}\nkey_file = {:?}\n",
        at("password"),
        at("ca"),
        at("cert"),
        at("key")
    );
    let path = directory.path().join("tidegate.toml");
    fs::write(&path, &text).expect("the file is written");
    assert!(config::load(&path).is_ok(), "a gateway waits for them");
    let none = check(directory.path(), text.as_bytes()).expect_err("no file is there");
    assert_eq!(none.lines().count(), 4, "{none}");
    assert!(none.contains("FILE:6: mqtt[0].ca_file: cannot read "), "{none}");

    fs::write(at("password"), "\n").expect("written");
    fs::write(at("ca"), b"\x30\x82").expect("written");
    fs::write(at("cert"), "-----BEGIN CERTIFICATE-----\n").expect("written");
    fs::write(at("key"), "-----BEGIN CERTIFICATE-----\n").expect("written");
    let wrong = check(directory.path(), text.as_bytes()).expect_err("their content is wrong");
    assert_eq!(wrong.lines().count(), 3, "{wrong}");
    assert!(wrong.contains("mqtt[0].password_file: the password in ") && wrong.contains(" is empty; "), "{wrong}");
    assert!(wrong.contains(" holds no private key; "), "{wrong}");

    fs::write(at("password"), "secret\n").expect("written");
    fs::write(at("ca"), "# ours\r\n-----BEGIN CERTIFICATE-----\r\n").expect("written");
    fs::write(at("key"), "-----BEGIN EC PRIVATE KEY-----\n").expect("written");
    assert!(check(directory.path(), text.as_bytes()).is_ok());
}

#[test]
fn a_password_is_the_file_s_content_without_the_last_line_break() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("password");
    let read = |content: &[u8]| {
        fs::write(&path, content).expect("the file is written");
        config::read_password(&path).map_err(|why| why.to_string())
    };
    assert_eq!(read(b"secret").as_deref(), Ok("secret"));
    assert_eq!(read(b" secret\n").as_deref(), Ok(" secret"));
    assert_eq!(read(b"secret\r\n").as_deref(), Ok("secret"));
    assert_eq!(read(b"secret\n\n").as_deref(), Ok("secret\n"));
    assert!(read(b"").is_err_and(|why| why.ends_with("is empty")));
    assert!(read(b"\r\n").is_err_and(|why| why.ends_with("is empty")));
    assert!(read(b"sec\xffret").is_err_and(|why| why.ends_with("is not UTF-8 text") && !why.contains("sec")));
    assert_eq!(read(&[b'x'; 65_535]).map(|password| password.len()), Ok(65_535));
    assert!(read(&[b'x'; 65_536]).is_err_and(|why| why.contains("longer than the 65535 bytes")));
    assert!(read(&[b'x'; 70_000]).is_err_and(|why| why.contains("longer than the 65535 bytes")));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).expect("the mode is set");
    let readable_all_the_same = fs::File::open(&path).is_ok(); // for root
    assert!(readable_all_the_same || read_fails(&path));
    assert!(read_fails(directory.path()));
}

fn read_fails(path: &Path) -> bool {
    config::read_password(path).is_err_and(|why| why.to_string().starts_with("cannot read the password from "))
}

/// Pieces of which texts are made that come close to a configuration.
#[rustfmt::skip]
const PIECES: &[&str] = &[
    "[", "]", "[[", "]]", "\n", " = ", ".", ",", "\"", "'", "\"\"\"", "{", "}", "#", "gateway", "tcp", "mqtt", "store",
    "serial", "brokers", "window", "max_size", "'${HOST}'", "'$${'", "'mqtt://[::1'", "0x", "1e999", "-1", "inf", "nan",
    "1979-05-27", "18446744073709551616", "true", "'584542046090626years'", "'99999999999999TiB'", "[[tcp]]\n",
    "[[mqtt]]\n", "[[[", "\u{feff}", "\u{0}", "\r",
];

fn piece() -> impl Strategy<Value = String> {
    prop_oneof![4 => prop::sample::select(PIECES).prop_map(str::to_owned), 1 => any::<String>()]
}

proptest! {
    #[test]
    fn no_text_panics(text in any::<String>()) {
        let _ = parse(&text);
    }

    #[test]
    fn no_text_that_looks_like_a_configuration_panics(pieces in prop::collection::vec(piece(), 0..40)) {
        let _ = parse(&pieces.concat());
    }

    #[test]
    fn no_damage_to_the_shipped_file_panics(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3_u8), 1..20),
    ) {
        // Keys in force, so that damage meets more than comments.
        let mut bytes: Vec<u8> = SHIPPED.lines().flat_map(|line| {
            let in_force = line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line);
            [in_force.as_bytes(), b"\n"].concat()
        }).collect();
        for (at, byte, kind) in damage {
            let at = at.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                1 => drop(bytes.remove(at)),
                _ => bytes.insert(at, byte),
            }
        }
        if let Err(problems) = parse(&String::from_utf8_lossy(&bytes)) {
            prop_assert!(problems.lines().all(|line| line.starts_with("f.toml:") && !line.contains(char::is_control)));
        }
    }

    #[test]
    fn a_value_out_of_place_is_one_problem_on_its_line(lines in 0..5_usize, value in prop::sample::select(
        &["[]", "{}", "1979-05-27", "1.5"][..],
    )) {
        let text = format!("{TCP}{MQTT}{}window = {value}\n", "\n".repeat(lines));
        let found = problems(&text);
        prop_assert_eq!(found.len(), 1);
        prop_assert!(found[0].starts_with(&format!("{}: mqtt[0].window: ", 4 + lines)), "{:?}", found);
    }
}
