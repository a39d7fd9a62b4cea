"""How tests start Java: the flags that every JVM takes from the environment, whoever starts it.

A JVM of a test lives for seconds. The second compiler and the threads of the default collector would take CPU time from
the tests and never earn it back.
"""

from typing import Final

JVM_ENVIRONMENT: Final = {"JDK_JAVA_OPTIONS": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"}
"""`bin/java` reads it since Java 9, so it reaches Spark's launcher, drivers, daemons and executors alike."""
