//! What Ingresses get when they are made.

use crate::cluster::Cluster;

fn ingress(name: &str, annotations: &str, class: &str) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {{name: {name}, annotations: {{{annotations}}}}}\n\
         spec: {{{class}defaultBackend: {{service: {{name: web, port: {{number: 80}}}}}}}}\n"
    )
}

fn class(name: &str, default: bool) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: IngressClass\nmetadata:\n  name: {name}\n  annotations:\n    \
         ingressclass.kubernetes.io/is-default-class: \"{default}\"\nspec: {{controller: example.com/{name}}}\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ingress_without_a_class_gets_the_default_one_when_it_is_made() {
    let cluster = Cluster::start().await;
    let class_of = async |name: &str| {
        let path = "jsonpath={.spec.ingressClassName}";
        cluster.kubectl(&["get", "ingress", name, "-o", path]).await
    };
    cluster.apply(&class("other", false)).await;
    cluster.apply(&ingress("early", "", "")).await;
    assert_eq!(class_of("early").await, "");

    cluster.apply(&class("first", true)).await;
    for (name, annotations, chosen, wanted) in [
        ("plain", "", "", "first"),
        ("chosen", "", "ingressClassName: other, ", "other"),
        ("annotated", "kubernetes.io/ingress.class: other", "", ""),
        // Only at its creation.
        ("early", "changed: later", "", ""),
    ] {
        cluster.apply(&ingress(name, annotations, chosen)).await;
        assert_eq!(class_of(name).await, wanted, "{name}");
    }
}
