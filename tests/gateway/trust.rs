//! Promise: who may send can be changed in a file.

use std::sync::Arc;

use tempfile::TempDir;

use crate::backend::Backend;
use crate::sender::{Post, every_provider};
use crate::support::{Gateway, write_config};

#[test]
fn a_list_of_addresses_in_a_file_is_read_at_every_reload_and_a_bad_one_changes_nothing() {
    let backend = Backend::accepting();
    let directory = Arc::new(TempDir::new().unwrap());
    let list = directory.path().join("ranges.txt");
    let sources = every_provider(&backend)
        .replace("name = \"github\"\n", "name = \"github\"\nallow_addresses = { file = \"ranges.txt\" }\n");
    write_config(directory.path(), &sources);
    std::fs::write(&list, "").unwrap();
    let Err((code, log)) = Gateway::try_start_in(Arc::clone(&directory), |_| ()) else {
        panic!("it started")
    };
    assert_eq!(code, Some(78));
    assert!(log.contains("source[4].allow_addresses.file") && log.contains("has no address"), "{log}");

    std::fs::write(&list, "# documentation\n192.0.2.0/24\n").unwrap();
    let gateway = Gateway::start_in(directory, |_| ());
    let status = |id: &str| {
        Post::signed("github", "/webhooks/github", id, "push", id.as_bytes()).send(gateway.listen).status
    };
    let reload = |text: &str, outcome: &str| {
        let series = format!("countersign_config_reloads_total{{outcome=\"{outcome}\"}}");
        let before = gateway.metric(&series).unwrap();
        std::fs::write(&list, text).unwrap();
        gateway.signal("HUP");
        gateway.eventually_metric(&series, before + 1.0);
    };
    assert_eq!(status("d-1"), 403);
    reload("192.0.2.0/24\n127.0.0.0/8\n", "succeeded");
    assert_eq!(status("d-2"), 200);
    for (bad, reason) in
        [("", "has no address"), ("192.0.2.0/24\nlocalhost\n", "ranges.txt:2: it is neither")]
    {
        reload(bad, "refused");
        assert!(gateway.log().contains(reason), "{reason}");
        assert_eq!(status(&format!("d-{bad:?}")), 200, "the list before it is in force");
    }
    reload("192.0.2.0/24\n", "succeeded");
    assert_eq!(status("d-3"), 403);
}
