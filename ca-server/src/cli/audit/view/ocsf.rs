//! Which OCSF class and activity a record is: entities, the life of the program, or a call of the API. The numbers are those of OCSF 1.9.

use serde_json::{Value, json};

use super::Seen;

/// OCSF's word for an activity that its class has no number for.
const OTHER: u64 = 99;

/// A class and an activity in it.
struct Class {
    uid: u64,
    name: &'static str,
    activity: u64,
}

/// What an action is.
fn class(action: &str) -> Class {
    let (subject, verb) = action.split_once('.').unwrap_or((action, ""));
    let activity = match verb {
        "create" | "generate" | "prepare" | "append" => 1,
        "read" | "list" | "count" | "show" => 2,
        "update" | "set" | "renew" | "refresh" | "taint" | "supersede" | "reset" => 3,
        "delete" | "evict" | "revoke" | "retire" => 4,
        "attest" => 6,
        "activate" => 10,
        "ban" => 11,
        _ => OTHER,
    };
    match subject {
        "log" if matches!(verb, "start" | "stop") => Class {
            uid: 6002,
            name: "Application Lifecycle",
            activity: if verb == "start" { 3 } else { 4 },
        },
        "entry" | "agent" | "node" | "authority" | "bundle" | "federation" | "token" => Class {
            uid: 3004,
            name: "Entity Management",
            activity,
        },
        // This class has the four plain activities only.
        _ => Class {
            uid: 6003,
            name: "API Activity",
            activity: if activity <= 4 { activity } else { OTHER },
        },
    }
}

/// The event of a record.
pub(super) fn event(seen: &Seen<'_>) -> Value {
    let action = seen.text("/action");
    let Class {
        uid,
        name,
        activity,
    } = class(&action);
    let good = seen.text("/outcome") == "success";
    let mut event = json!({
        "category_uid": uid / 1000,
        "class_uid": uid,
        "class_name": name,
        "activity_id": activity,
        "activity_name": action,
        "type_uid": uid * 100 + activity,
        "time": seen.milliseconds(),
        "severity_id": if good { 1 } else { 3 },
        "status_id": if good { 1 } else { 2 },
        "status": seen.text("/outcome"),
        "metadata": {
            "version": "1.9.0-dev",
            "uid": seen.text("/id"),
            "sequence": seen.record["seq"],
            "original_time": seen.text("/time"),
            "log_name": "audit",
            "product": {
                "name": "ca-server",
                "vendor_name": "Finial",
                "version": env!("CARGO_PKG_VERSION"),
            },
        },
        "raw_data_hash": { "algorithm_id": 3, "algorithm": "SHA-256", "value": seen.hash },
        "actor": { "user": {
            "uid": seen.text("/actor/id"),
            "type": seen.text("/actor/type"),
        } },
    });
    let mut add = |field: &str, value: Value| event[field] = value;
    let ip = seen.text("/origin/ip");
    if !ip.is_empty() {
        let port: Option<u16> = seen.text("/origin/port").parse().ok();
        add("src_endpoint", json!({ "ip": ip, "port": port }));
    }
    let code = seen.text("/code");
    if !code.is_empty() {
        add("status_code", code.into());
        add("status_detail", seen.text("/decision/reason").into());
    }
    let object = json!({
        "type": seen.text("/object/kind"),
        "name": seen.text("/object/name"),
        "uid": seen.text("/object/id"),
    });
    match uid {
        3004 => add("entity", object),
        6002 => add(
            "app",
            json!({ "name": "ca-server", "vendor_name": "Finial" }),
        ),
        _ => {
            add("api", json!({ "operation": action }));
            add("resources", json!([object]));
        }
    }
    event
}
