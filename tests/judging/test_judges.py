"""Judges against closed forms, definitions and PyTorch; what they refuse; and that corruption is answered in order."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg, ndimage, special

from dipddpm_jax import data, torch_files, torch_weights
from dipddpm_jax.__main__ import main
from dipddpm_jax.commands.ends import Stopped
from dipddpm_jax.commands.judge_training import fit_judge
from dipddpm_jax.data import rendering
from dipddpm_jax.errors import UserError
from dipddpm_jax.judging import comparison, judges, metrics, train_judge
from dipddpm_jax.networks.classifier import Classifier
from dipddpm_jax.networks.layers import initial_variables
from dipddpm_jax.networks.resnet18 import ResNet18


def sets(seed=0, n=40, m=50, d=6):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)), rng.normal(0.5, 2, (m, d))


# --- distances of sets

def test_frechet_distance_of_gaussians_in_closed_form():
    """Diagonal covariances: each coordinate adds (difference of means)^2 + (difference of deviations)^2."""
    rng = np.random.default_rng(0)
    mean_a, mean_b, std_a, std_b = rng.normal(size=5), rng.normal(size=5), rng.uniform(0, 2, 5), rng.uniform(0, 2, 5)
    wanted = ((mean_a - mean_b) ** 2 + (std_a - std_b) ** 2).sum()
    turn = linalg.qr(rng.normal(size=(5, 5)))[0]  # which no rotation changes
    found = metrics.gaussian_distance(turn @ mean_a, turn @ np.diag(std_a**2) @ turn.T, turn @ mean_b,
                                      turn @ np.diag(std_b**2) @ turn.T)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_frechet_distance_equals_the_matrix_square_root_of_scipy():
    a, b = sets()
    s, t = np.cov(a.T), np.cov(b.T)
    wanted = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s + t - 2 * linalg.sqrtm(s @ t).real)
    np.testing.assert_allclose(metrics.frechet_distance(a, b), wanted, rtol=1e-10)
    np.testing.assert_allclose(metrics.frechet_distance(b, a), wanted, rtol=1e-10)


def test_frechet_distance_of_few_rows_and_of_shifts():
    a, _ = sets(n=4, d=9)  # singular covariances
    assert 0 <= metrics.frechet_distance(a, a) < 1e-7 * a.var(0).sum()
    shift = np.arange(9.0)
    np.testing.assert_allclose(metrics.frechet_distance(a, a + shift[None]), (shift**2).sum(), rtol=1e-7)
    np.testing.assert_allclose(metrics.frechet_distance(a[:, :1], 3 * a[:, :1]),
                               (2 * a[:, 0].mean()) ** 2 + (2 * a[:, 0].std(ddof=1)) ** 2, rtol=1e-7)
    with pytest.raises(ValueError, match="two rows"):
        metrics.frechet_distance(a[:1], a)


def test_kernel_distance_is_its_double_loop(monkeypatch):
    monkeypatch.setattr(metrics, "BLOCK", 3)
    a, b = sets(n=7, m=9)

    def k(x, y):
        return (x @ y / len(x) + 1) ** 3

    wanted = sum(k(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j) / (7 * 6)
    wanted += sum(k(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j) / (9 * 8)
    wanted -= 2 * sum(k(x, y) for x in a for y in b) / (7 * 9)
    np.testing.assert_allclose(metrics.kernel_distance(a, b), wanted, rtol=1e-12)
    with pytest.raises(ValueError, match="two rows"):
        metrics.kernel_distance(a, b[:1])


def test_kernel_distance_is_unbiased_where_the_frechet_distance_is_not():
    rng = np.random.default_rng(0)
    draws = [rng.normal(size=(2, 20, 4)) for _ in range(400)]
    kernel = np.array([metrics.kernel_distance(*pair) for pair in draws])
    frechet = np.array([metrics.frechet_distance(*pair) for pair in draws])
    assert abs(kernel.mean()) < 3 * kernel.std() / 20 < 0.1
    assert frechet.mean() > 30 * frechet.std() / 20


# --- label accuracy

def by_definition(scores, wanted):
    hits = asked = 0
    for row, labels in zip(scores, wanted):
        k = int(labels.sum())
        top = sorted(range(len(row)), key=lambda i: (-row[i], i))[:k]
        hits, asked = hits + sum(int(labels[i]) for i in top), asked + k
    return hits / asked


def test_label_accuracy_of_hand_made_cases():
    scores = np.array([[0.9, 0.1, 0.8, 0.2], [0.1, 0.2, 0.3, 0.4]])
    assert metrics.label_accuracy(scores, np.array([[1.0, 0, 1, 0], [0, 0, 0, 1]])) == 1
    assert metrics.label_accuracy(scores, np.array([[0.0, 1, 0, 0], [1, 0, 0, 0]])) == 0
    # a picture of three labels weighs three times one of one: 2 + 0 hits of 3 + 1 labels
    assert metrics.label_accuracy(scores, np.array([[1.0, 1, 1, 0], [1, 0, 0, 0]])) == 2 / 4


def test_of_equal_scores_the_lower_index_comes_first():
    equal = np.zeros((1, 4))
    assert metrics.label_accuracy(equal, np.array([[1.0, 0, 0, 0]])) == 1
    assert metrics.label_accuracy(equal, np.array([[0.0, 0, 0, 1]])) == 0
    assert metrics.label_accuracy(equal, np.array([[0.0, 1, 1, 0]])) == 1 / 2


def test_label_accuracy_is_its_definition():
    rng = np.random.default_rng(0)
    for _ in range(30):
        scores = rng.integers(0, 4, (9, 7)) / 4  # with many ties
        wanted = (rng.random((9, 7)) < 0.3).astype(float)
        wanted[np.arange(9), rng.integers(0, 7, 9)] = 1
        assert metrics.label_accuracy(scores, wanted) == pytest.approx(by_definition(scores, wanted), abs=1e-15)


@pytest.mark.parametrize("scores, wanted, words", [
    (np.zeros((2, 3)), np.array([[1.0, 0, 0], [0, 0, 0]]), "at least one label"),
    (np.zeros((1, 3)), np.array([[2.0, 0, 0]]), "a 1 among zeros"),
    (np.zeros((0, 3)), np.zeros((0, 3)), "needs pictures"),
    (np.array([[np.nan, 0, 0]]), np.array([[1.0, 0, 0]]), "finite"),
])
def test_label_accuracy_refuses(scores, wanted, words):
    with pytest.raises(UserError, match=words):
        metrics.label_accuracy(scores, wanted)


# --- judges

def tiny(several=False, shape=(8, 8, 1), name="tiny", seed=0):
    """An untrained judge of 5 classes, whose statistics are lived."""
    network = Classifier(5, (4, 6))
    variables = initial_variables(network, jax.random.key(seed), jnp.zeros((1, *shape)))
    variables = jax.tree.map(lambda a: a + 0.3 * jnp.abs(jnp.sin(jnp.arange(a.size) + 1.0)).reshape(a.shape), variables)
    return judges.Judge(name, network, variables, 0.5, shape, tuple("abcde"), several)


def noise(n, shape=(8, 8, 1), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8)


@pytest.mark.parametrize("network", [Classifier(5, (4, 6)), ResNet18(5, (4, 4, 4, 4))])
def test_the_head_of_the_features_is_the_network(network):
    x = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    variables = initial_variables(network, jax.random.key(0), x)
    features = network.apply(variables, x, method="features")
    assert features.shape == (2, network.widths[-1])
    np.testing.assert_array_equal(network.apply(variables, features, method="head"), network.apply(variables, x))


def test_scores_are_probabilities_of_each_picture_by_itself(monkeypatch):
    images = noise(11)
    one, many = judges.probabilities(tiny(), images), judges.probabilities(tiny(several=True), images)
    np.testing.assert_allclose(one.sum(1), 1, atol=1e-12)
    logits = np.asarray(tiny().network.apply(tiny().weights, jnp.asarray(images / np.float32(127.5) - 1)))
    np.testing.assert_allclose(one, special.softmax(logits, 1), atol=1e-6)
    np.testing.assert_allclose(many, special.expit(logits), atol=1e-6)
    monkeypatch.setattr(judges, "BATCH", 4)
    np.testing.assert_allclose(judges.probabilities(tiny(), images), one, atol=1e-6)
    np.testing.assert_allclose(judges.features(tiny(), images[5:6])[0], judges.features(tiny(), images)[5], rtol=1e-6)


def test_pictures_of_another_size_are_resized_and_of_other_channels_refused():
    torch = pytest.importorskip("torch")
    for size in ((4, 6), (16, 21)):
        images = noise(2, (*size, 1))
        x = torch.nn.functional.interpolate(torch.from_numpy(images).permute(0, 3, 1, 2).float(), (8, 8),
                                            mode="bilinear", antialias=True).permute(0, 2, 3, 1).numpy()
        wanted = tiny(several=True).network.apply(tiny().weights, jnp.asarray(x / 127.5 - 1))
        np.testing.assert_allclose(judges.probabilities(tiny(several=True), images), special.expit(wanted), atol=1e-5)
    with pytest.raises(UserError, match="channels"):
        judges.probabilities(tiny(), noise(2, (8, 8, 3)))


def test_a_judge_comes_back_from_its_file(tmp_path, monkeypatch):
    judge, path = tiny(), tmp_path / "more" / "tiny.safetensors"
    judges.save_judge(judge, torch_weights.export_torch(judge.weights), path, {"seed": 3})
    found = judges.load_judge("tiny", path)
    assert found[:2] + found[3:7] == judge[:2] + judge[3:7]
    assert found.record["seed"] == 3
    np.testing.assert_array_equal(judges.probabilities(found, noise(3)), judges.probabilities(judge, noise(3)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match="dipddpm-jax judge cifar10"):
        judges.load_judge("cifar10")
    torch_files.write_state(torch_weights.export_torch(judge.weights), tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="no judge"):
        judges.load_judge("other", tmp_path / "other.safetensors")


@pytest.mark.parametrize("name, least", [("digits", 0.98), ("crops", 0.85), ("scenes", 0.99)])
def test_the_judges_in_the_package_are_as_good_as_they_say(name, least, tmp_path):
    judge = judges.load_judge(name)
    held = data.load(judge.record["data"], "test", tmp_path)
    assert judges.path_of(name).stat().st_size < 2e6
    assert judge.label_names == held.label_names and judge.image_shape == held.images.shape[1:]
    assert judge.record["held_out"] == len(held.images)
    assert judges.accuracy(judge, held.images, held.labels) == pytest.approx(judge.accuracy, abs=2e-3)
    assert judge.accuracy >= least


def test_the_checkpoint_of_the_course_gives_what_pytorch_gives(tmp_path):
    from networks.test_resnet18 import torch_resnet18

    torch, model = torch_resnet18((64, 128, 256, 512))
    torch.save({"model": model.state_dict(), "epoch": 3}, tmp_path / "checkpoint.pth")
    judge = judges.load_course_checkpoint(tmp_path / "checkpoint.pth")
    assert judge.several and len(judge.label_names) == 24 and np.isnan(judge.accuracy)
    images = noise(2, (64, 64, 3))
    with torch.no_grad():
        wanted = model.eval()(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1).numpy()
    np.testing.assert_allclose(judges.probabilities(judge, images), wanted, atol=1e-5)
    assert wanted.std(0).max() > 1e-3
    other = {"model": {"fc.0.weight": torch.zeros(24, 8)}}
    for content, words in (({"epoch": 3}, "no state_dict"), (other, "missing")):
        torch.save(content, tmp_path / "wrong.pth")
        with pytest.raises(UserError, match=f"not the course's evaluator.*{words}"):
            judges.load_course_checkpoint(tmp_path / "wrong.pth")
    (tmp_path / "text.pth").write_text("no checkpoint")
    with pytest.raises(UserError, match="not the course's evaluator"):
        judges.load_course_checkpoint(tmp_path / "text.pth")
    with pytest.raises(UserError, match="no such file"):
        judges.load_course_checkpoint(tmp_path / "none.pth")


# --- comparison with real pictures

@pytest.fixture(scope="module")
def digits():
    return judges.load_judge("digits"), data.load("mnist5k")


def test_real_pictures_are_at_the_floor_and_labels_are_counted(digits):
    judge, train = digits
    half = 1000
    found = comparison.compare(judge, train.images[half:1300], train.images[:half], train.labels[half:1300])
    assert (found["n"], found["reference"], found["dimensions"]) == (300, half - 300, 64)
    assert found["fd"] == pytest.approx(found["floor"], abs=4 * found["spread"])
    assert abs(found["kid"]) < 5 * found["kid_spread"]
    assert found["label_accuracy"] > 0.99 and sum(found["histogram"].values()) == pytest.approx(1)
    wrong = comparison.compare(judge, train.images[:300], train.images[:600], (train.labels[:300] + 1) % 10, splits=0)
    assert wrong["label_accuracy"] < 0.02 and wrong["spread"] is None
    fewer = comparison.compare(judge, train.images[:300], train.images[300:500], splits=2)
    assert (fewer["n"], fewer["samples"], fewer["reference"]) == (100, 300, 100)
    with pytest.raises(UserError, match="too few"):
        comparison.compare(judge, train.images[:1], train.images)


def test_the_distances_grow_with_noise_blur_and_missing_classes(digits):
    judge, train = digits
    rng = np.random.default_rng(0)
    probe, labels = train.images[:400], train.labels[:400]
    real = judges.features(judge, train.images[400:1400])
    draw = rng.standard_normal(probe.shape)
    kinds = {
        "noise": [(probe + s * draw).clip(0, 255).astype(np.uint8) for s in (0, 16, 48, 128)],
        "blur": [ndimage.gaussian_filter(probe, (0, s, s, 0)) for s in (0, 0.7, 1.5, 4)],
        "missing classes": [probe[labels >= k][:120] for k in (0, 3, 6)],
    }
    for kind, steps in kinds.items():
        found = [judges.features(judge, images) for images in steps]
        for distance in (metrics.frechet_distance, metrics.kernel_distance):
            assert (np.diff([distance(seen, real) for seen in found]) > 0).all(), (kind, distance)


# --- training

def toy():
    """Two classes, dark and bright, which anything learns."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 64).astype(np.int32)
    images = (40 + 150 * labels[:, None, None, None] + rng.integers(0, 40, (64, 8, 8, 1))).astype(np.uint8)
    held = data.Dataset(images, labels, ("dark", "bright"), "toy")
    return train_judge.Recipe(Classifier(2, (4,)), held, lambda seed, i: (images, labels), 4, 0.03,
                                 batch_size=8)


@pytest.fixture(scope="module")
def compiled():
    """The toy's pass, compiled once for all tests."""
    return train_judge.make_pass(toy(), 64)


def test_training_learns_and_goes_on_exactly_where_it_stopped(tmp_path, compiled, monkeypatch):
    monkeypatch.setattr(train_judge, "make_pass", lambda recipe, length: compiled)
    whole = fit_judge(toy(), 0, tmp_path / "whole", None, "again")
    judge = judges.Judge("toy", toy().network, whole, 0.0, (8, 8, 1), ("dark", "bright"), False)
    assert judges.accuracy(judge, toy().held.images, toy().held.labels) == 1
    for step in (1, 2, 3):
        with pytest.raises(Stopped, match=f"budget of 0 minutes is used up; saved pass {step}. Go on with: again"):
            fit_judge(toy(), 0, tmp_path / "parts", 0.0, "again")
    parts = fit_judge(toy(), 0, tmp_path / "parts", 0.0, "again")
    jax.tree.map(np.testing.assert_array_equal, parts, whole)


def test_pictures_are_moved_by_whole_pixels_and_their_edges_repeated():
    images = jnp.asarray(noise(50), jnp.float32)
    still, shifted = toy()._replace(noise=0.0, shift=0), toy()._replace(noise=0.0, shift=2)
    np.testing.assert_array_equal(train_judge.disturbed(images, jax.random.key(0), still), images)
    moved = np.asarray(train_judge.disturbed(images, jax.random.key(0), shifted))
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    corners = [[(i, j) for i in range(5) for j in range(5) if (moved[n] == padded[n, i : i + 8, j : j + 8]).all()]
               for n in range(50)]
    assert all(len(found) == 1 for found in corners) and len({found[0] for found in corners}) > 15


def test_pictures_get_noise_of_all_strengths_up_to_the_one_given():
    blank = jnp.zeros((200, 16, 16, 1))
    found = np.asarray(train_judge.disturbed(blank, jax.random.key(0), toy()._replace(noise=0.4)))
    strengths = np.sort(found.std((1, 2, 3)))
    np.testing.assert_allclose(strengths, 0.4 * (np.arange(200) + 0.5) / 200, atol=0.06)
    assert abs(found.mean()) < 0.01


def test_scenes_to_train_on_are_new_in_every_pass(monkeypatch):
    monkeypatch.setattr(rendering, "render", lambda labels, rng: rng.integers(0, 256, (2, 2, 2, 3), np.uint8))
    passes = [train_judge.fresh_scenes(seed, i) for seed, i in ((0, 0), (0, 1), (1, 0))]
    assert len({images.tobytes() for images, _ in passes}) == len({labels.tobytes() for _, labels in passes}) == 3


def test_the_command(tmp_path, compiled, monkeypatch, capsys):
    monkeypatch.setattr(train_judge, "make_pass", lambda recipe, length: compiled)
    monkeypatch.setattr(train_judge, "recipe", lambda name, data_dir: toy())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(SystemExit) as stopped:
        main(["judge", "toy", "--minutes", "0"])
    assert stopped.value.code == 0 and "Go on with: dipddpm-jax judge toy --seed 0" in capsys.readouterr().err
    main(["judge", "toy"])
    assert "accuracy 100.00 % on 64 held-out pictures" in capsys.readouterr().out
    judge = judges.load_judge("toy")
    assert judge.accuracy == 1 and judge.record["pictures"] == 4 * 64
    files = [path.name for path in judges.judges_folder().iterdir()]
    assert files == ["toy.safetensors"]  # the unfinished state is gone


@pytest.mark.parametrize("args, words", [
    (["mnist6k"], "unknown data set"),
    (["folder:nowhere"], "nowhere"),
])
def test_the_command_refuses(args, words, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(SystemExit) as stopped:
        main(["judge", *args])
    text = capsys.readouterr().err
    assert stopped.value.code == 2 and words in text and len(text.splitlines()) <= 2
