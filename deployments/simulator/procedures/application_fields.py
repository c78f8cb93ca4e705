"""The columns of an application, their defaults, and the input fields of the procedures that write them."""

from ..store import Row
from ..zod import Field
from .registry import NULLABLE_TEXT, OPTIONAL_NAME, OPTIONAL_NUMBER, OPTIONAL_TEXT, TEXT

APPLICATION_COLUMNS = (
    "applicationId name appName description env previewEnv watchPaths previewBuildArgs previewBuildSecrets "
    "previewLabels previewWildcard previewPort previewHttps previewPath previewCertificateType "
    "previewCustomCertResolver previewLimit isPreviewDeploymentsActive previewRequireCollaboratorPermissions "
    "rollbackActive buildArgs buildSecrets memoryReservation memoryLimit cpuReservation cpuLimit title "
    "enabled subtitle command args icon refreshToken sourceType cleanCache repository owner branch buildPath "
    "triggerType autoDeploy gitlabProjectId gitlabRepository gitlabOwner gitlabBranch gitlabBuildPath "
    "gitlabPathNamespace giteaRepository giteaOwner giteaBranch giteaBuildPath bitbucketRepository "
    "bitbucketRepositorySlug bitbucketOwner bitbucketBranch bitbucketBuildPath username password dockerImage "
    "registryUrl customGitUrl customGitBranch customGitBuildPath customGitSSHKeyId enableSubmodules "
    "dockerfile dockerContextPath dockerBuildStage dropBuildPath healthCheckSwarm restartPolicySwarm "
    "placementSwarm updateConfigSwarm rollbackConfigSwarm modeSwarm labelsSwarm networkSwarm "
    "stopGracePeriodSwarm endpointSpecSwarm ulimitsSwarm replicas applicationStatus buildType railpackVersion "
    "herokuVersion publishDirectory isStaticSpa createEnvFile createdAt registryId rollbackRegistryId "
    "environmentId githubId gitlabId giteaId bitbucketId serverId buildServerId buildRegistryId networkIds "
    "detachDokployNetwork"
).split()
# The columns whose default is not null.
APPLICATION_DEFAULTS: Row = {
    "previewPort": 3000,
    "previewHttps": False,
    "previewPath": "/",
    "previewCertificateType": "none",
    "previewLimit": 3,
    "isPreviewDeploymentsActive": False,
    "previewRequireCollaboratorPermissions": True,
    "rollbackActive": False,
    "sourceType": "github",
    "cleanCache": False,
    "buildPath": "/",
    "triggerType": "push",
    "autoDeploy": True,
    "gitlabBuildPath": "/",
    "giteaBuildPath": "/",
    "bitbucketBuildPath": "/",
    "enableSubmodules": False,
    "dockerfile": "Dockerfile",
    "replicas": 1,
    "applicationStatus": "idle",
    "buildType": "nixpacks",
    "railpackVersion": "0.15.4",
    "herokuVersion": "24",
    "createEnvFile": True,
    "networkIds": [],
    "detachDokployNetwork": False,
}
NULLABLE_ANY = Field("any", presence="optional", nullable=True)
NULLABLE_FLAG = Field("boolean", presence="optional", nullable=True)
SOURCES = ("github", "docker", "git", "gitlab", "bitbucket", "gitea", "drop")
STATUSES = ("idle", "running", "done", "error")
HEALTH_CHECK = {
    "Test": Field("any", presence="optional"),
    **dict.fromkeys(("Interval", "Timeout", "StartPeriod", "Retries"), OPTIONAL_NUMBER),
}
UPDATE_CONFIG = {
    "Parallelism": Field("number"),
    "Delay": OPTIONAL_NUMBER,
    "FailureAction": OPTIONAL_TEXT,
    "Monitor": OPTIONAL_NUMBER,
    "MaxFailureRatio": OPTIONAL_NUMBER,
    "Order": TEXT,
}
APPLICATION_FIELDS: dict[str, Field] = {
    **{name: NULLABLE_TEXT for name in APPLICATION_COLUMNS if not name.endswith("Swarm")},
    **{name: NULLABLE_FLAG for name, value in APPLICATION_DEFAULTS.items() if isinstance(value, bool)},
    **{name: NULLABLE_ANY for name in APPLICATION_COLUMNS if name.endswith("Swarm")},
    **dict.fromkeys(("args", "networkIds", "watchPaths", "previewLabels"), NULLABLE_ANY),
    "enabled": NULLABLE_FLAG,
    "isStaticSpa": NULLABLE_FLAG,
    "replicas": OPTIONAL_NUMBER,
    "previewPort": OPTIONAL_NUMBER,
    "previewLimit": OPTIONAL_NUMBER,
    "gitlabProjectId": Field("number", "optional", nullable=True),
    "healthCheckSwarm": Field("object", "optional", nullable=True, shape=HEALTH_CHECK),
    "updateConfigSwarm": Field("object", "optional", nullable=True, shape=UPDATE_CONFIG),
    "rollbackConfigSwarm": Field("object", "optional", nullable=True, shape=UPDATE_CONFIG),
    "labelsSwarm": Field("record", "optional", nullable=True),
    "sourceType": Field(presence="optional", options=SOURCES),
    "applicationStatus": Field(presence="optional", options=STATUSES),
    "name": OPTIONAL_NAME,
    "environmentId": OPTIONAL_TEXT,
    "applicationId": TEXT,
}
# Dokploy ignores these two.
del APPLICATION_FIELDS["appName"], APPLICATION_FIELDS["createdAt"]
APP_NAME = Field(
    presence="optional",
    minimum=1,
    maximum=63,
    pattern="[a-zA-Z0-9._-]+",
    messages={"invalid_format": "App name can only contain letters, numbers, dots, underscores and hyphens"},
)
