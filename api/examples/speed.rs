//! Measures what every request pays, in CPU time so that a busy machine does not show:
//! `cargo run --release -p skiff-api --example speed`.

use std::hint::black_box;
use std::time::Duration;

use serde_json::Value;
use skiff_api::decode::{FieldValidation, conform, decode};
use skiff_api::patch::strategic_merge;
use skiff_api::schema::schema;

const POD: &str = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web-7d4b9c6f5d-x2x4z","generateName":"web-7d4b9c6f5d-",
"namespace":"default","labels":{"app":"web","pod-template-hash":"7d4b9c6f5d"},"ownerReferences":[{"apiVersion":"apps/v1",
"kind":"ReplicaSet","name":"web-7d4b9c6f5d","uid":"2b3c8d5e-0c1f-4a43-9d57-3a7c5f9f1a11","controller":true,"blockOwnerDeletion":true}]},
"spec":{"volumes":[{"name":"cache","emptyDir":{}}],"containers":[{"name":"web","image":"example.com/web:1.2.3","ports":[{"name":"http",
"containerPort":8080,"protocol":"TCP"}],"env":[{"name":"MODE","value":"production"},{"name":"POD_IP","valueFrom":{"fieldRef":{
"apiVersion":"v1","fieldPath":"status.podIP"}}}],"resources":{"limits":{"cpu":"500m","memory":"128Mi"},"requests":{"cpu":"250m",
"memory":"64Mi"}},"volumeMounts":[{"name":"cache","mountPath":"/cache"}],"readinessProbe":{"httpGet":{"path":"/ready","port":"http",
"scheme":"HTTP"},"timeoutSeconds":1,"periodSeconds":10},"imagePullPolicy":"IfNotPresent"}],"restartPolicy":"Always",
"terminationGracePeriodSeconds":30,"dnsPolicy":"ClusterFirst","serviceAccountName":"default"}}"#;

fn main() {
    let (start, before) = (cpu_time(), resident_kib());
    let kind = schema().kind("", "v1", "Pod").expect("a built-in kind");
    let (took, size) = (cpu_time() - start, resident_kib() - before);
    println!(
        "schema: parsed in {took:?}, {size} KiB, {} types",
        schema().types().count()
    );

    let body = POD.replace('\n', "");
    let pod = decode(body.as_bytes(), kind, FieldValidation::Strict)
        .expect("a valid pod")
        .value;
    let patch = serde_json::json!({"metadata": {"labels": {"x": "y"}}, "spec": {"containers": [{"name": "web", "image": "b"}]}});
    println!("pod: {} bytes", body.len());
    measure("decode, strict", || {
        decode(body.as_bytes(), kind, FieldValidation::Strict)
    });
    measure("serde_json::Value alone", || {
        serde_json::from_slice::<Value>(body.as_bytes())
    });
    measure("conform (and clone)", || {
        conform(pod.clone(), kind, FieldValidation::Strict)
    });
    measure("strategic merge", || strategic_merge(kind, &pod, &patch));
    measure("serialize", || serde_json::to_vec(&pod));
}

fn measure<T>(name: &str, run: impl Fn() -> T) {
    const ROUNDS: u32 = 20_000;
    for _ in 0..ROUNDS / 10 {
        black_box(run());
    }
    let start = cpu_time();
    for _ in 0..ROUNDS {
        black_box(run());
    }
    println!("{name}: {:?} each", (cpu_time() - start) / ROUNDS);
}

/// What this thread has spent on a CPU.
fn cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux with schedstat");
    Duration::from_nanos(
        text.split(' ')
            .next()
            .and_then(|n| n.parse().ok())
            .expect("schedstat begins with nanoseconds"),
    )
}

/// What this process has in memory.
fn resident_kib() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    4 * text
        .split(' ')
        .nth(1)
        .and_then(|n| n.parse::<usize>().ok())
        .expect("statm's second number is pages")
}
