# Build against the ROS 2 wheels from PyPI as well as against an installed ROS.

# 1. Under pip nobody has sourced a setup file, so the ROS prefix must be found. It is where python sees ament_package:
#    the virtual environment, or pip's temporary folder when the build is isolated.
if(DEFINED SKBUILD)
  find_package(Python3 REQUIRED COMPONENTS Interpreter)
  execute_process(
    COMMAND "${Python3_EXECUTABLE}" -c
      "import ament_package, pathlib; print(pathlib.Path(ament_package.__file__).resolve().parents[4].as_posix())"
    OUTPUT_VARIABLE ros_prefix
    OUTPUT_STRIP_TRAILING_WHITESPACE
    COMMAND_ERROR_IS_FATAL ANY)
  list(PREPEND CMAKE_PREFIX_PATH "${ros_prefix}")
  set(ENV{AMENT_PREFIX_PATH} "${ros_prefix}")
  set(BUILD_TESTING OFF)
endif()

# 2. The Python targets that the wheels export name header folders of the machine that built the wheels, and CMake stops at a
#    folder that is not there. Drop those. Late, because rosidl_generate_interfaces imports more packages itself. Where ROS
#    comes from apt every folder exists and nothing is dropped.
function(openvla_drop_missing_include_folders)
  get_property(targets DIRECTORY PROPERTY IMPORTED_TARGETS)
  list(FILTER targets INCLUDE REGEX "__rosidl_generator_py$")
  foreach(target IN LISTS targets)
    get_target_property(folders ${target} INTERFACE_INCLUDE_DIRECTORIES)
    if(NOT folders)
      continue()
    endif()
    set(present "")
    foreach(folder IN LISTS folders)
      if(NOT IS_ABSOLUTE "${folder}" OR EXISTS "${folder}")
        list(APPEND present "${folder}")
      endif()
    endforeach()
    set_property(TARGET ${target} PROPERTY INTERFACE_INCLUDE_DIRECTORIES "${present}")
  endforeach()
endfunction()
cmake_language(DEFER CALL openvla_drop_missing_include_folders)
