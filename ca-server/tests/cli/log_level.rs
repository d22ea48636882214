//! `ca-server log-level`: shown, changed and set back, in our spelling and in SPIRE's.

use serde_json::json;

use super::server::Server;

#[test]
fn the_log_level_is_shown_changed_and_set_back() {
    let server = Server::start();
    let info = json!({ "currentLevel": "info", "launchLevel": "info" });
    assert_eq!(server.json(&["log-level", "show"]), info);
    let debug = json!({ "currentLevel": "debug", "launchLevel": "info" });
    assert_eq!(
        server.json(&["log-level", "set", "--level", "debug"]),
        debug
    );
    assert_eq!(server.json(&["logger", "get"]), debug);
    let table = server.text(&["logger", "set", "-level", "WARN"]);
    assert_eq!(table, "Log level        : warn\nConfigured       : info\n");
    assert_eq!(
        server.json(&["logger", "set", "-level", "panic"])["currentLevel"],
        "off"
    );
    assert_eq!(server.json(&["logger", "reset"]), info);
    assert_eq!(
        server.refused(&["log-level", "set", "--level", "loud"]).0,
        2
    );
}
