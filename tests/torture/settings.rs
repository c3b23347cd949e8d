//! Configurations of the gateway, a new one for each of its lives.

use fastrand::Rng;

/// Where a gateway's links, log and brokers are.
pub struct Places<'a> {
    pub tcp: &'a str,
    pub http: Option<u16>,
    pub serial: Option<&'a str>,
    pub log: &'a str,
    /// In memory, where what proves that the log is no old copy lies.
    pub runtime: Option<&'a str>,
    pub brokers: &'a [String],
    /// They need much under way at a time, so that what is missing comes in a minute.
    pub are_slow: bool,
}

/// Draws a configuration in which nothing that was acknowledged may be lost when the
/// process is killed.
pub fn draw(places: &Places, durability: &str, random: &mut Rng) -> String {
    let mut pick = |choices: &[&'static str]| choices[random.usize(..choices.len())];
    let (commit_within, history_within) =
        (pick(&["0s", "20ms", "100ms", "250ms"]), pick(&["\"off\"", "\"1s\"", "\"5m\""]));
    let (deliver, segment) = (pick(&["at-once", "at-once", "after-commit"]), pick(&["16KiB", "256KiB", "4MiB"]));
    let mut toml = format!(
        "[gateway]\nid = \"gw\"\n\n[[tcp]]\nlisten = \"{}\"\nauthentication = \"none\"\n\n[http]\n",
        places.tcp
    );
    toml += &places.http.map_or("enabled = false\n".into(), |port| format!("listen = \"127.0.0.1:{port}\"\n"));
    if let Some(path) = places.serial {
        toml += &format!("\n[[serial]]\npath = \"{path}\"\nreopen_interval = \"100ms\"\n");
    }
    toml += &format!(
        "\n[devices]\nwindow = {}\n\n[store]\ndirectory = \"{}\"\ncommit_within = \"{commit_within}\"\n\
         history_within = {history_within}\ndeliver = \"{deliver}\"\nsegment_size = \"{segment}\"\n\
         durability = \"{durability}\"\nmax_size = \"32MiB\"\n",
        pick(&["16", "64", "4096"]),
        places.log,
    );
    toml += &places.runtime.map_or(String::new(), |path| format!("runtime_directory = \"{path}\"\n"));
    for (i, url) in places.brokers.iter().enumerate() {
        toml += &format!(
            "\n[[mqtt]]\nname = \"sink-{i}\"\nbrokers = [\"{url}\"]\nversion = \"{}\"\ntopics = \"{}\"\n\
             encoding = \"{}\"\nwindow = {}\nmax_batch = \"{}\"\nkeep_alive = \"5s\"\nconnect_timeout = \"1s\"\n\
             backoff_min = \"20ms\"\nbackoff_max = \"200ms\"\n",
            pick(&["3.1.1", "5"]),
            pick(&["gateway", "device"]),
            pick(&["json", "postcard"]),
            pick(if places.are_slow { &["32", "100"] } else { &["1", "8", "32", "100"] }),
            pick(if places.are_slow { &["4KiB", "16KiB"] } else { &["1KiB", "4KiB", "16KiB"] }),
        );
    }
    toml
}
