//! Classes of block I/O: which one a container has, by annotations that containerd and CRI-O know
//! as well. Kubernetes has no field for it.

use super::spec::Map;

/// Of a container, set by whoever speaks CRI.
const OF_CONTAINER: &str = "io.kubernetes.cri.blockio-class";
/// Of a pod's container with the name that follows.
const OF_NAMED: &str = "blockio.resources.beta.kubernetes.io/container.";
/// Of all containers of a pod.
const OF_POD: &str = "blockio.resources.beta.kubernetes.io/pod";

/// The class of the container `name`: its own annotation counts most, then what its pod says of it,
/// then what its pod says of all. An empty one is none.
#[must_use]
pub fn class_of<'a>(container: &'a Map, pod: &'a Map, name: &str) -> Option<&'a str> {
    let named = format!("{OF_NAMED}{name}");
    let said = container.get(OF_CONTAINER);
    let said = said.or_else(|| pod.get(&named)).or_else(|| pod.get(OF_POD));
    said.map(String::as_str).filter(|class| !class.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_fewer_counts_more() {
        let map = |pairs: &[(&str, &str)]| {
            let owned = pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
            owned.collect::<Map>()
        };
        let none = Map::new();
        let pod = map(&[(OF_POD, "low"), (&format!("{OF_NAMED}db"), "high")]);
        let own = map(&[(OF_CONTAINER, "own")]);
        assert_eq!(class_of(&none, &none, "db"), None);
        assert_eq!(class_of(&none, &pod, "web"), Some("low"));
        assert_eq!(class_of(&none, &pod, "db"), Some("high"));
        assert_eq!(class_of(&own, &pod, "db"), Some("own"));
        assert_eq!(class_of(&map(&[(OF_CONTAINER, "")]), &pod, "db"), None);
    }
}
